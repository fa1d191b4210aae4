// AVX2 and FMA: the machines without AVX512.
#include "kernels.h"
#include "vec_avx2.h"

#include "activation.inl"
#include "rows.inl"
#include "linear_avx2.inl"
#include "attention_fp32.inl"
#include "attention.inl"

namespace ingot {

extern const Kernels kernels_scalar, kernels_avx2;
const Kernels kernels_avx2 = {"avx2", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    kernels_scalar.quantize_groups, kernels_scalar.linear4, kernels_scalar.store_page, kernels_scalar.paged_attention,
    kernels_scalar.paged_scratch};

}  // namespace ingot
