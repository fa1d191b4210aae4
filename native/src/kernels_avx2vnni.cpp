// AVX2 with the instruction for four eight-bit products per lane: recent machines without AVX512.
#include "kernels.h"
#include "vec_avx2.h"

#include "activation.inl"
#include "rows.inl"
#include "epilogue.inl"
#include "linear_avx2vnni.inl"
#include "products4_vnni.inl"
#include "linear4.inl"
#include "softmax.inl"
#include "attention_fp32.inl"
#include "attention.inl"
#include "paged.inl"
#include "linear16_fp32.inl"

namespace ingot {

extern const Kernels kernels_avx2_vnni;
const Kernels kernels_avx2_vnni = {
    "avx2-vnni", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    quantize_groups, linear4, store_page, paged_attention, paged_scratch,
    round_rows, linear16, sizeof(Cell)};

}  // namespace ingot
