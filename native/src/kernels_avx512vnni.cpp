// AVX512 with the instruction for four eight-bit products per lane.
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
#include "attention_fp32.inl"
#include "attention.inl"
#include "paged.inl"
#include "linear16_fp32.inl"

namespace ingot {

extern const Kernels kernels_avx512_vnni;
const Kernels kernels_avx512_vnni = {
    "avx512-vnni", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    quantize_groups, linear4, store_page, paged_attention, paged_scratch,
    round_rows, linear16, sizeof(Cell)};

}  // namespace ingot
