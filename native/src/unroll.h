// Loops that are unrolled before anything else happens to them. An array of vectors stays in registers only where
// every index is a constant by the time the compiler splits arrays up; an ordinary short loop is unrolled later.
#pragma once

#define INGOT_INLINE inline __attribute__((always_inline))
// Apart, so that one loop's constants do not take registers from another's sums.
#define INGOT_APART __attribute__((noinline))
#define INGOT_EACH(i) [&](auto i) __attribute__((always_inline))

namespace ingot {
namespace {

template <int N>
struct Index {
    static constexpr int value = N;
    constexpr operator int() const { return N; }
};

// body(0), body(1), ... body(N - 1), the argument a constant.
template <int N, class Body>
INGOT_INLINE void each(Body&& body) {
    if constexpr (N > 0) {
        each<N - 1>(body);
        body(Index<N - 1>{});
    }
}

}  // namespace
}  // namespace ingot
