// AMX: eight-bit linear layers in tiles, the rest as avx512-vnni-bf16. Needs the operating system's permission for
// the tile state of the process; dispatch.cpp asks for it before it hands out this table.
#include "kernels.h"
#include "vec_avx512.h"

#include "activation.inl"
#include "rows.inl"
#include "linear_amx.inl"
#include "attention_bf16.inl"
#include "attention.inl"

namespace ingot {

extern const Kernels kernels_scalar, kernels_amx;
const Kernels kernels_amx = {"amx", quantize_rows, linear_in_tiles, layer_norm, rms_norm, rotate, attention, attention_scratch,
    kernels_scalar.quantize_groups, kernels_scalar.linear4, kernels_scalar.store_page, kernels_scalar.paged_attention,
    kernels_scalar.paged_scratch};

}  // namespace ingot
