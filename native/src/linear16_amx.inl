// Products of bf16 in tiles: see linear_amx.inl. Included after attention_bf16.inl.

namespace ingot {
namespace {

constexpr int rows16_at_once = 32;

INGOT_INLINE void put_rounded(Cell* p, F x, F y) { _mm512_storeu_si512(p, two_to_bf16(x, y)); }

}  // namespace
}  // namespace ingot

#include "linear16.inl"

namespace ingot {
namespace {

template <int C>
void multiply16(int32_t rows, Rows16& part, float* products) {
    alignas(64) float start[16 * C] = {};
    const auto* cells = reinterpret_cast<const uint8_t*>(part.cells);
    const auto* panels = reinterpret_cast<const uint8_t*>(part.panels);
    const Operands of = {cells, panels, 2 * part.k_pad, 2 * part.ahead};
    multiply_in_tiles<C>(rows, part.prepared, of, products, start);
}

// Tiles that hold something make every switch of threads dearer.
void linear16_in_tiles(const Linear16& job) {
    linear16(job);
    _tile_release();
}

}  // namespace
}  // namespace ingot
