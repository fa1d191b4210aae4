// Exact sums of eight-bit products, 256 bits at a time. The instruction that multiplies bytes takes one factor
// without a sign and saturates at sixteen bits. |w| (at most 128) and x with the sign of w (at most 127) make the
// same product, and two of those, 32512, fit. It is why codes of rows start at 1.

namespace ingot {
namespace {

constexpr int rows_at_once = 4;

}  // namespace
}  // namespace ingot

#include "linear.inl"

namespace ingot {
namespace {

// R rows by the two halves of a panel.
template <int R>
INGOT_INLINE void multiply_panel(const Rows& part, const int8_t* w, int32_t* sums, int ld) {
    const int64_t k_pad = part.k_pad;
    const uint8_t* a = part.codes;
    const I shift = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    I acc[R][2];
    each<R>(INGOT_EACH(r) { acc[r][0] = acc[r][1] = zero_int(); });
    for (int64_t k = 0; k < k_pad; k += 4, a += 4, w += 64) {
        I weights[2], sizes[2];
        __builtin_prefetch(w + part.ahead);
        each<2>(INGOT_EACH(h) {
            weights[h] = _mm256_load_si256(reinterpret_cast<const I*>(w + 32 * h));
            sizes[h] = _mm256_abs_epi8(weights[h]);
        });
        each<R>(INGOT_EACH(r) {
            const I x = _mm256_xor_si256(four_codes(a + r * k_pad), shift);
            each<2>(INGOT_EACH(h) {
                const I pairs = _mm256_maddubs_epi16(sizes[h], _mm256_sign_epi8(x, weights[h]));
                acc[r][h] = _mm256_add_epi32(acc[r][h], _mm256_madd_epi16(pairs, ones));
            });
        });
    }
    each<R * 2>(INGOT_EACH(i) { store(sums + i / 2 * ld + i % 2 * 8, acc[i / 2][i % 2]); });
}

template <int C, int R>
INGOT_INLINE void multiply_any(int32_t rows, const Rows& part, int32_t* sums) {
    if constexpr (R > 1)
        if (rows < R) return multiply_any<C, R - 1>(rows, part, sums);
    for (int c = 0; c < C; ++c) multiply_panel<R>(part, part.panels + c * 16 * part.k_pad, sums + 16 * c, 16 * C);
}

template <int C>
void multiply(int32_t rows, Rows& part, int32_t* sums) {
    multiply_any<C, rows_at_once>(rows, part, sums);
}

}  // namespace
}  // namespace ingot
