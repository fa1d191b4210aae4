// AVX512 with eight-bit and bf16 products: as avx512-vnni, but attention and layers of bf16 multiply in it.
#include "kernels.h"
#include "vec_avx512.h"

#include "activation.inl"
#include "dot4_avx512vnni.inl"
#include "rows.inl"
#include "epilogue.inl"
#include "linear_avx512.inl"
#include "products4_vnni.inl"
#include "linear4.inl"
#include "softmax.inl"
#include "attention_bf16.inl"
#include "attention.inl"
#include "paged.inl"
#include "linear16_bf16.inl"

namespace ingot {

extern const Kernels kernels_avx512_bf16;
const Kernels kernels_avx512_bf16 = {
    "avx512-vnni-bf16", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    quantize_groups, linear4, store_page, paged_attention, paged_scratch,
    round_rows, linear16, sizeof(Cell)};

}  // namespace ingot
