// Exact sums of eight-bit products, 256 bits at a time, with the instruction for four of them per lane.

namespace ingot {
namespace {

constexpr int rows_at_once = 6;  // 6 x 2 sums, two vectors of weights and a code fill fifteen registers

}  // namespace
}  // namespace ingot

#include "linear.inl"

namespace ingot {
namespace {

INGOT_INLINE I dot4(I acc, I u8, I s8) { return _mm256_dpbusd_avx_epi32(acc, u8, s8); }

// R rows by the two halves of a panel; with few rows, U sums of each hide the latency of the products.
template <int R>
INGOT_INLINE void multiply_panel(const Rows& part, const int8_t* w, const int32_t* code_sums, int32_t* sums, int ld) {
    constexpr int U = R >= 4 ? 1 : R >= 2 ? 2 : 4;
    const int64_t k_pad = part.k_pad;
    const uint8_t* a = part.codes;
    I acc[U][R][2];
    each<2>(INGOT_EACH(h) {  // codes are shifted by 128
        const I start = _mm256_sub_epi32(zero_int(), _mm256_slli_epi32(load(code_sums + 8 * h), 7));
        each<U * R>(INGOT_EACH(i) { acc[i / R][i % R][h] = i < R ? start : zero_int(); });
    });
    for (int64_t k = 0; k < k_pad; k += 4 * U, a += 4 * U, w += 64 * U) {
        each<U>(INGOT_EACH(u) {
            I weights[2];
            __builtin_prefetch(w + 64 * u + part.ahead);
            each<2>(INGOT_EACH(h) {
                weights[h] = _mm256_load_si256(reinterpret_cast<const I*>(w + 64 * u + 32 * h));
            });
            each<R>(INGOT_EACH(r) {
                const I codes = four_codes(a + 4 * u + r * k_pad);
                each<2>(INGOT_EACH(h) {
                    acc[u][r][h] = dot4(acc[u][r][h], codes, weights[h]);
                });
            });
        });
    }
    each<R * 2>(INGOT_EACH(i) {
        I total = acc[0][i / 2][i % 2];
        each<U - 1>(INGOT_EACH(u) { total = _mm256_add_epi32(total, acc[u + 1][i / 2][i % 2]); });
        store(sums + i / 2 * ld + i % 2 * 8, total);
    });
}

template <int C, int R>
INGOT_INLINE void multiply_any(int32_t rows, const Rows& part, int32_t* sums) {
    if constexpr (R > 1)
        if (rows < R) return multiply_any<C, R - 1>(rows, part, sums);
    for (int c = 0; c < C; ++c)
        multiply_panel<R>(part, part.panels + c * 16 * part.k_pad, part.code_sums + 16 * c, sums + 16 * c, 16 * C);
}

template <int C>
void multiply(int32_t rows, Rows& part, int32_t* sums) {
    multiply_any<C, rows_at_once>(rows, part, sums);
}

}  // namespace
}  // namespace ingot
