// AVX512 without an instruction for eight-bit products (Skylake servers): they are made of sixteen-bit ones, the
// even and the odd of each four apart, because the byte instruction of old saturates.
#include "kernels.h"
#include "vec_avx512.h"

namespace ingot {
namespace {
INGOT_INLINE I dot4(I acc, I u8, I s8) {
    const I low = _mm512_madd_epi16(_mm512_and_si512(u8, _mm512_set1_epi32(0x00ff00ff)),
                                    _mm512_srai_epi16(_mm512_slli_epi16(s8, 8), 8));
    const I high = _mm512_madd_epi16(_mm512_srli_epi16(u8, 8), _mm512_srai_epi16(s8, 8));
    return _mm512_add_epi32(acc, _mm512_add_epi32(low, high));
}
}  // namespace
}  // namespace ingot

#include "activation.inl"
#include "rows.inl"
#include "epilogue.inl"
#include "linear_avx512.inl"
#include "products4_words.inl"
#include "linear4.inl"
#include "softmax.inl"
#include "attention_fp32.inl"
#include "attention.inl"
#include "paged.inl"
#include "linear16_fp32.inl"

namespace ingot {

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = {
    "avx512", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    quantize_groups, linear4, store_page, paged_attention, paged_scratch,
    round_rows, linear16, sizeof(Cell)};

}  // namespace ingot
