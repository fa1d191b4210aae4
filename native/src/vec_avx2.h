// Eight lanes. The same names as vec_avx512.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace ingot {
namespace {

using F = __m256;
using I = __m256i;
using Mask = __m256i;  // all ones where a lane counts
constexpr int lanes = 8;
constexpr int row_block = 4;  // of sixteen registers: eight sums, what they are made of, and a few to spare

INGOT_INLINE I lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
INGOT_INLINE Mask first_lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane_numbers()); }
INGOT_INLINE Mask lanes_between(int from, int to) { return _mm256_andnot_si256(first_lanes(from), first_lanes(to)); }

INGOT_INLINE F set(float x) { return _mm256_set1_ps(x); }
INGOT_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
INGOT_INLINE F load(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
INGOT_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
INGOT_INLINE void store(float* p, F x, Mask m) { _mm256_maskstore_ps(p, m, x); }
INGOT_INLINE F keep(F x, Mask m) { return _mm256_and_ps(x, _mm256_castsi256_ps(m)); }
INGOT_INLINE F drop(F x, Mask m) { return _mm256_andnot_ps(_mm256_castsi256_ps(m), x); }
INGOT_INLINE F keep_or(F x, Mask m, F other) { return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(m)); }

INGOT_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
INGOT_INLINE F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
INGOT_INLINE F maximum(F a, F b) { return _mm256_max_ps(a, b); }
INGOT_INLINE F minimum(F a, F b) { return _mm256_min_ps(a, b); }
INGOT_INLINE F magnitude(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INGOT_INLINE F nearest(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// For whole n from lowest_power to 127.
constexpr float lowest_power = -126.0f;
INGOT_INLINE F times_power_of_two(F a, F n) {
    const I exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
INGOT_INLINE Mask below(F a, F b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }

INGOT_INLINE float sum(F a) {
    const __m128 quarters = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(quarters, _mm_movehl_ps(quarters, quarters));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
INGOT_INLINE float highest(F a) {
    const __m128 quarters = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_max_ps(quarters, _mm_movehl_ps(quarters, quarters));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

INGOT_INLINE I zero_int() { return _mm256_setzero_si256(); }
INGOT_INLINE I load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
INGOT_INLINE void store(int32_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<I*>(p), x); }
INGOT_INLINE F to_float(I x) { return _mm256_cvtepi32_ps(x); }
INGOT_INLINE I bits(F x) { return _mm256_castps_si256(x); }
INGOT_INLINE I maximum(I a, I b) { return _mm256_max_epi32(a, b); }
INGOT_INLINE int32_t highest(I a) {
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
INGOT_INLINE I set(int32_t x) { return _mm256_set1_epi32(x); }
INGOT_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
INGOT_INLINE I subtract(I a, I b) { return _mm256_sub_epi32(a, b); }
INGOT_INLINE int32_t sum(I a) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
INGOT_INLINE F load_halves(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
INGOT_INLINE F load(const int8_t* p) {
    return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

INGOT_INLINE I four_codes(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return set(four);
}
INGOT_INLINE I load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
INGOT_INLINE I low_halves(I x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INGOT_INLINE I high_halves(I x) { return low_halves(_mm256_srli_epi16(x, 4)); }
INGOT_INLINE I dot2_bytes(I u8, I s8) { return _mm256_maddubs_epi16(u8, s8); }
INGOT_INLINE I add_words(I a, I b) { return _mm256_add_epi16(a, b); }
INGOT_INLINE I sums_of_words(I x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

INGOT_INLINE F lower_bf16(I x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
INGOT_INLINE F upper_bf16(I x) { return _mm256_castsi256_ps(_mm256_and_si256(x, set(-0x10000))); }
INGOT_INLINE F nearest_bf16(F x) {
    const I b = bits(x), odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), set(1));
    const I no_exponent = _mm256_cmpeq_epi32(_mm256_and_si256(b, set(0x7f800000)), zero_int());
    const I quiet = _mm256_or_si256(b, set(0x400000)), zero = _mm256_and_si256(b, set(-0x7fffffff - 1));
    I near = add(b, add(odd, set(0x7fff)));
    near = _mm256_blendv_epi8(near, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    near = _mm256_blendv_epi8(near, zero, no_exponent);
    return upper_bf16(near);
}

INGOT_INLINE void store_bytes(uint8_t* p, I x) {
    const I low = _mm256_and_si256(x, _mm256_set1_epi32(255));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

INGOT_INLINE void transpose(F t[8]) {
    F u[8];
    for (int i = 0; i < 8; i += 4) {
        const F a = _mm256_unpacklo_ps(t[i], t[i + 1]), b = _mm256_unpackhi_ps(t[i], t[i + 1]);
        const F c = _mm256_unpacklo_ps(t[i + 2], t[i + 3]), d = _mm256_unpackhi_ps(t[i + 2], t[i + 3]);
        u[i] = _mm256_shuffle_ps(a, c, 0x44);
        u[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
        u[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        u[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

}  // namespace
}  // namespace ingot
