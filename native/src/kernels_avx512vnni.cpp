// AVX512 with the instruction for four eight-bit products per lane.
#include "kernels.h"
#include "vec_avx512.h"

namespace ingot {
namespace {
INGOT_INLINE I dot4(I acc, I u8, I s8) { return _mm512_dpbusd_epi32(acc, u8, s8); }
}  // namespace
}  // namespace ingot

#include "activation.inl"
#include "rows.inl"
#include "linear_avx512.inl"
#include "attention_fp32.inl"
#include "attention.inl"

namespace ingot {

extern const Kernels kernels_scalar, kernels_avx512_vnni;
const Kernels kernels_avx512_vnni = {"avx512-vnni", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    kernels_scalar.quantize_groups, kernels_scalar.linear4, kernels_scalar.store_page, kernels_scalar.paged_attention,
    kernels_scalar.paged_scratch};

}  // namespace ingot
