// Exact sums of eight-bit products in tiles: sixteen rows of 64 codes by 64 x 16 weights, which is one kilobyte of
// the packed panel as it lies. Two tiles of rows by two of weights fill the eight registers: 0 to 3 are sums, 4 and
// 5 rows, 6 and 7 weights.

namespace ingot {
namespace {

constexpr int rows_at_once = 32;

}  // namespace
}  // namespace ingot

#include "linear.inl"

namespace ingot {
namespace {

// Some compilers do not know that tile instructions read memory, and would drop or delay what was written for them.
INGOT_INLINE void written(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

struct TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

// A register that is not used has no rows. Setting shapes also clears the tiles.
INGOT_INLINE void shape_tiles(int32_t rows) {
    alignas(64) TileShapes shapes = {};
    shapes.palette = 1;
    const int32_t upper = rows < 16 ? rows : 16, lower = rows - upper;
    const int32_t of_tile[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int t = 0; t < 8; ++t) {
        shapes.rows[t] = static_cast<uint8_t>(of_tile[t]);
        shapes.bytes[t] = of_tile[t] > 0 ? 64 : 0;
    }
    written(&shapes);
    _tile_loadconfig(&shapes);
}

// The numbers of tiles are part of the instructions, so each of the four shapes of a block is written out.
template <int C, bool two>
INGOT_INLINE void multiply_tiles(const Rows& part, int32_t* sums, const int32_t* start) {
    constexpr long row_of_sums = C * 64;
    const long k_pad = part.k_pad;
    // Stride 0: all rows start from the same sums.
    _tile_loadd(0, start, 0);
    if constexpr (C == 2) _tile_loadd(1, start + 16, 0);
    if constexpr (two) _tile_loadd(2, start, 0);
    if constexpr (two && C == 2) _tile_loadd(3, start + 16, 0);
    for (long k = 0; k < k_pad; k += 64) {
        for (long line = 0; line < 1024 && part.ahead > 0; line += 64)
            for (long c = 0; c < C; ++c)
                __builtin_prefetch(part.panels + 16 * k_pad * c + 16 * k + line + part.ahead);
        _tile_loadd(4, part.codes + k, k_pad);
        _tile_loadd(6, part.panels + 16 * k, 64);
        _tile_dpbusd(0, 4, 6);
        if constexpr (two) _tile_loadd(5, part.codes + 16 * k_pad + k, k_pad);
        if constexpr (two) _tile_dpbusd(2, 5, 6);
        if constexpr (C == 2) _tile_loadd(7, part.panels + 16 * k_pad + 16 * k, 64);
        if constexpr (C == 2) _tile_dpbusd(1, 4, 7);
        if constexpr (two && C == 2) _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums, row_of_sums);
    if constexpr (C == 2) _tile_stored(1, sums + 16, row_of_sums);
    if constexpr (two) _tile_stored(2, sums + 16 * C * 16, row_of_sums);
    if constexpr (two && C == 2) _tile_stored(3, sums + 16 * C * 16 + 16, row_of_sums);
}

template <int C>
void multiply(int32_t rows, Rows& part, int32_t* sums) {
    if (part.prepared != rows) shape_tiles(rows);
    part.prepared = rows;
    alignas(64) int32_t start[16 * C];
    for (int c = 0; c < 16 * C; c += lanes)  // codes are shifted by 128
        store(start + c, _mm512_sub_epi32(zero_int(), _mm512_slli_epi32(load(part.code_sums + c), 7)));
    written(start);
    if (rows > 16)
        multiply_tiles<C, true>(part, sums, start);
    else
        multiply_tiles<C, false>(part, sums, start);
}

// Tiles that hold something make every switch of threads dearer.
void linear_in_tiles(const Linear& job) {
    linear(job);
    _tile_release();
}

}  // namespace
}  // namespace ingot
