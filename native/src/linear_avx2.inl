// Exact sums of eight-bit products, 256 bits at a time. The instruction that multiplies bytes adds two products in
// sixteen bits and saturates: 2 * 255 * 128 does not fit. So bytes become words, the even and the odd ones of each
// four apart, and words are multiplied: two products of at most 127 * 128 fit easily.

namespace ingot {
namespace {

constexpr int rows_at_once = 4;

struct Rows;
template <int R, int C>
void multiply(const Rows& part, int32_t* sums);

}  // namespace
}  // namespace ingot

#include "linear.inl"

namespace ingot {
namespace {

INGOT_INLINE I four_codes(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

// R rows by one vector of eight outputs; a panel of sixteen is two of them, half a cache line apart.
template <int R>
INGOT_INLINE void multiply_half(const Rows& part, const int8_t* w, const int32_t* code_sums, int32_t* sums, int ld) {
    const int64_t k_pad = part.k_pad;
    const uint8_t* a = part.codes;
    const I even = _mm256_set1_epi32(0x00ff00ff);
    I acc[R];
    const I start = _mm256_sub_epi32(zero_int(), _mm256_slli_epi32(load(code_sums), 7));
    each<R>(INGOT_EACH(r) { acc[r] = start; });
    for (int64_t k = 0; k < k_pad; k += 4, a += 4, w += 64) {
        const I weights = _mm256_load_si256(reinterpret_cast<const I*>(w));
        const I even_weights = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8);
        const I odd_weights = _mm256_srai_epi16(weights, 8);
        each<R>(INGOT_EACH(r) {
            const I codes = four_codes(a + r * k_pad);
            const I low = _mm256_madd_epi16(_mm256_and_si256(codes, even), even_weights);
            const I high = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), odd_weights);
            acc[r] = _mm256_add_epi32(acc[r], _mm256_add_epi32(low, high));
        });
    }
    each<R>(INGOT_EACH(r) { store(sums + r * ld, acc[r]); });
}

template <int R, int C>
void multiply(const Rows& part, int32_t* sums) {
    for (int c = 0; c < C; ++c)
        for (int half = 0; half < 16; half += 8)
            multiply_half<R>(part, part.panels + c * 16 * part.k_pad + 4 * half, part.code_sums + 16 * c + half,
                             sums + 16 * c + half, 16 * C);
}

}  // namespace
}  // namespace ingot
