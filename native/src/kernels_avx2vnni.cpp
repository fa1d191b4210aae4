// AVX2 with the instruction for four eight-bit products per lane: recent machines without AVX512.
#include "kernels.h"
#include "vec_avx2.h"

#include "activation.inl"
#include "rows.inl"
#include "linear_avx2vnni.inl"
#include "attention_fp32.inl"
#include "attention.inl"

namespace ingot {

extern const Kernels kernels_scalar, kernels_avx2_vnni;
const Kernels kernels_avx2_vnni = {"avx2-vnni", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    kernels_scalar.quantize_groups, kernels_scalar.linear4, kernels_scalar.store_page, kernels_scalar.paged_attention,
    kernels_scalar.paged_scratch};

}  // namespace ingot
