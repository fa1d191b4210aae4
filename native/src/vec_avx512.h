// Sixteen lanes. What the shared loops (*.inl) ask of an instruction set, and nothing else.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace ingot {
namespace {

using F = __m512;
using I = __m512i;
using Mask = __mmask16;
constexpr int lanes = 16;
constexpr int row_block = 8;  // rows of attention together, by two vectors: sixteen sums, two loads for eight uses

// The first n lanes; none below 1, all from sixteen on.
INGOT_INLINE Mask first_lanes(int n) { return static_cast<Mask>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u); }
INGOT_INLINE Mask lanes_between(int from, int to) {
    return static_cast<Mask>(first_lanes(to) & static_cast<Mask>(~first_lanes(from)));
}

INGOT_INLINE F set(float x) { return _mm512_set1_ps(x); }
INGOT_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
INGOT_INLINE F load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
INGOT_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
INGOT_INLINE void store(float* p, F x, Mask m) { _mm512_mask_storeu_ps(p, m, x); }
INGOT_INLINE F keep(F x, Mask m) { return _mm512_maskz_mov_ps(m, x); }
INGOT_INLINE F drop(F x, Mask m) { return _mm512_maskz_mov_ps(static_cast<Mask>(~m), x); }
INGOT_INLINE F keep_or(F x, Mask m, F other) { return _mm512_mask_mov_ps(other, m, x); }

INGOT_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }    // a b + c
INGOT_INLINE F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
INGOT_INLINE F maximum(F a, F b) { return _mm512_max_ps(a, b); }          // b where either is NaN
INGOT_INLINE F minimum(F a, F b) { return _mm512_min_ps(a, b); }
INGOT_INLINE F magnitude(F a) { return _mm512_abs_ps(a); }
INGOT_INLINE F nearest(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// For whole n, as far down as there is a float; from lowest_power on.
constexpr float lowest_power = -200.0f;
INGOT_INLINE F times_power_of_two(F a, F n) { return _mm512_scalef_ps(a, n); }
INGOT_INLINE Mask below(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }

INGOT_INLINE float sum(F a) {
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 quarters = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    const __m128 pair = _mm_add_ps(quarters, _mm_movehl_ps(quarters, quarters));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
INGOT_INLINE float highest(F a) {
    const __m256 halves = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 quarters = _mm_max_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    const __m128 pair = _mm_max_ps(quarters, _mm_movehl_ps(quarters, quarters));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

INGOT_INLINE I zero_int() { return _mm512_setzero_si512(); }
INGOT_INLINE I load(const int32_t* p) { return _mm512_loadu_si512(p); }
INGOT_INLINE void store(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
// Keeps a vector in its register, where the compiler would rather load it again for each of its uses.
INGOT_INLINE void stay(I& x) { __asm__("" : "+v"(x)); }
INGOT_INLINE void stay(F& x) { __asm__("" : "+v"(x)); }
INGOT_INLINE F to_float(I x) { return _mm512_cvtepi32_ps(x); }
INGOT_INLINE I bits(F x) { return _mm512_castps_si512(x); }
INGOT_INLINE I maximum(I a, I b) { return _mm512_max_epi32(a, b); }
INGOT_INLINE int32_t highest(I a) { return _mm512_reduce_max_epi32(a); }
INGOT_INLINE I set(int32_t x) { return _mm512_set1_epi32(x); }
INGOT_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
INGOT_INLINE I subtract(I a, I b) { return _mm512_sub_epi32(a, b); }
INGOT_INLINE int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }
INGOT_INLINE F load_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INGOT_INLINE F load(const int8_t* p) {
    return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// Bytes: four neighbours in every lane, a vector of pairs of four-bit codes and its two halves, and sums of products
// of two neighbours, which saturate at sixteen bits.
INGOT_INLINE I four_codes(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return set(four);
}
INGOT_INLINE I load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
INGOT_INLINE I low_halves(I x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INGOT_INLINE I high_halves(I x) { return low_halves(_mm512_srli_epi16(x, 4)); }
INGOT_INLINE I dot2_bytes(I u8, I s8) { return _mm512_maddubs_epi16(u8, s8); }
INGOT_INLINE I add_words(I a, I b) { return _mm512_add_epi16(a, b); }
INGOT_INLINE I sums_of_words(I x) { return _mm512_madd_epi16(x, _mm512_set1_epi16(1)); }

// Two bf16 in each lane, as floats: the lower ones, the upper ones. And floats rounded as round_rows asks.
INGOT_INLINE F lower_bf16(I x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
INGOT_INLINE F upper_bf16(I x) { return _mm512_castsi512_ps(_mm512_and_si512(x, set(-0x10000))); }
INGOT_INLINE F nearest_bf16(F x) {
    const I b = bits(x), odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), set(1));
    I near = add(b, add(odd, set(0x7fff)));
    near = _mm512_mask_or_epi32(near, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), b, set(0x400000));
    near = _mm512_mask_and_epi32(near, _mm512_testn_epi32_mask(b, set(0x7f800000)), b, set(-0x7fffffff - 1));
    return upper_bf16(near);
}

// The lowest byte of each lane.
INGOT_INLINE void store_bytes(uint8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
}

// Square of lanes x lanes, rows to columns.
INGOT_INLINE void transpose(F t[16]) {
    F u[16];
    for (int i = 0; i < 16; i += 4) {
        const F a = _mm512_unpacklo_ps(t[i], t[i + 1]), b = _mm512_unpackhi_ps(t[i], t[i + 1]);
        const F c = _mm512_unpacklo_ps(t[i + 2], t[i + 3]), d = _mm512_unpackhi_ps(t[i + 2], t[i + 3]);
        u[i] = _mm512_shuffle_ps(a, c, 0x44);
        u[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        u[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        u[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        const F a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88), b = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
        const F c = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
        const F d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
        t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        t[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

}  // namespace
}  // namespace ingot
