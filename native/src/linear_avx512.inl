// Exact sums of eight-bit products, 512 bits at a time. The file that includes this defines
// `dot4(acc, u8, s8)`: each lane gains the sum of its four products.

namespace ingot {
namespace {

constexpr int rows_at_once = 12;  // 12 x 2 sums fill 24 registers; fourteen loads feed 24 products

}  // namespace
}  // namespace ingot

#include "linear.inl"

namespace ingot {
namespace {

// U independent sums per output hide the latency of the products where rows are few; sums are exact, so their
// order is free. k_pad is a multiple of 64: of sixteen steps of four codes.
template <int R, int C>
INGOT_APART void multiply_block(const Rows& part, int32_t* sums) {
    constexpr int U = R * C >= 6 ? 1 : R * C >= 4 ? 2 : R * C >= 2 ? 4 : 8;
    const int64_t k_pad = part.k_pad, ahead = part.ahead;
    I acc[U][R][C];
    each<C>(INGOT_EACH(c) {
        // Codes are stored shifted by 128, which adds 128 times the sum of the weights.
        const I start = _mm512_sub_epi32(zero_int(), _mm512_slli_epi32(load(part.code_sums + 16 * c), 7));
        each<U * R>(INGOT_EACH(i) { acc[i / R][i % R][c] = i < R ? start : zero_int(); });
    });
    const uint8_t* a = part.codes;
    const int8_t* w = part.panels;
    for (int64_t k = 0; k < k_pad; k += 4 * U, a += 4 * U, w += 64 * U) {
        each<U>(INGOT_EACH(u) {
            I weights[C];
            each<C>(INGOT_EACH(c) {
                weights[c] = _mm512_load_si512(w + 64 * u + 16 * k_pad * c);
                stay(weights[c]);
                __builtin_prefetch(w + 64 * u + 16 * k_pad * c + ahead);
            });
            each<R>(INGOT_EACH(r) {
                const I codes = four_codes(a + 4 * u + r * k_pad);
                each<C>(INGOT_EACH(c) { acc[u][r][c] = dot4(acc[u][r][c], codes, weights[c]); });
            });
        });
    }
    each<R * C>(INGOT_EACH(i) {
        I total = acc[0][i / C][i % C];
        each<U - 1>(INGOT_EACH(u) { total = _mm512_add_epi32(total, acc[u + 1][i / C][i % C]); });
        store(sums + i * 16, total);
    });
}

template <int C, int R>
INGOT_INLINE void multiply_any(int32_t rows, const Rows& part, int32_t* sums) {
    if constexpr (R > 1)
        if (rows < R) return multiply_any<C, R - 1>(rows, part, sums);
    multiply_block<R, C>(part, sums);
}

template <int C>
void multiply(int32_t rows, Rows& part, int32_t* sums) {
    multiply_any<C, rows_at_once>(rows, part, sums);
}

}  // namespace
}  // namespace ingot
