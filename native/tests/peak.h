// What one thread of this machine does with eight-bit products on registers alone, and how fast it reads.
#pragma once
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

namespace peak {

inline double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The shortest of as many runs as the budget allows, in seconds.
template <class Run>
double best_of(double budget, Run run) {
    double best = 1e9;
    run();
    for (const double end = seconds() + budget; seconds() < end;) {
        const double start = seconds();
        run();
        const double took = seconds() - start;
        best = took < best ? took : best;
    }
    return best;
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) inline void products(long turns) {
    for (long i = 0; i < turns; ++i)
        __asm__ volatile(
            "vpdpbusd %%zmm0,%%zmm1,%%zmm2\n vpdpbusd %%zmm0,%%zmm1,%%zmm3\n vpdpbusd %%zmm0,%%zmm1,%%zmm4\n"
            "vpdpbusd %%zmm0,%%zmm1,%%zmm5\n vpdpbusd %%zmm0,%%zmm1,%%zmm6\n vpdpbusd %%zmm0,%%zmm1,%%zmm7\n"
            "vpdpbusd %%zmm0,%%zmm1,%%zmm8\n vpdpbusd %%zmm0,%%zmm1,%%zmm9\n vpdpbusd %%zmm0,%%zmm1,%%zmm10\n"
            "vpdpbusd %%zmm0,%%zmm1,%%zmm11\n vpdpbusd %%zmm0,%%zmm1,%%zmm12\n vpdpbusd %%zmm0,%%zmm1,%%zmm13\n" ::
                : "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13");
}
// In 1e12 multiplications and additions per second. The caller has seen that the set is granted.
inline double tops() {
    constexpr long turns = 20000;
    return 12.0 * 128.0 * turns / best_of(0.5, [] { products(turns); }) / 1e12;
}
#else
inline double tops() { return 0.0; }
#endif

}  // namespace peak
