// AVX2 and FMA: the machines without AVX512.
#include "kernels.h"
#include "vec_avx2.h"

#include "activation.inl"
#include "rows.inl"
#include "epilogue.inl"
#include "linear_avx2.inl"
#include "products4_words.inl"
#include "linear4.inl"
#include "softmax.inl"
#include "attention_fp32.inl"
#include "attention.inl"
#include "paged.inl"
#include "linear16_fp32.inl"

namespace ingot {

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = {
    "avx2", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    quantize_groups, linear4, store_page, paged_attention, paged_scratch,
    round_rows, linear16, sizeof(Cell)};

}  // namespace ingot
