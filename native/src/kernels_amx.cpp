// AMX: eight-bit and bf16 linear layers in tiles, the rest as avx512-vnni-bf16. Needs the operating system's permission
// for the tile state of the process; dispatch.cpp asks for it before it hands out this table.
#include "kernels.h"
#include "vec_avx512.h"

#include "activation.inl"
#include "dot4_avx512vnni.inl"
#include "rows.inl"
#include "epilogue.inl"
#include "linear_amx.inl"
#include "products4_vnni.inl"
#include "linear4.inl"
#include "softmax.inl"
#include "attention_bf16.inl"
#include "attention.inl"
#include "paged.inl"
#include "linear16_amx.inl"

namespace ingot {

extern const Kernels kernels_amx;
const Kernels kernels_amx = {
    "amx", quantize_rows, linear_in_tiles, layer_norm, rms_norm, rotate, attention, attention_scratch,
    quantize_groups, linear4, store_page, paged_attention, paged_scratch,
    round_rows, linear16_in_tiles, sizeof(Cell)};

}  // namespace ingot
