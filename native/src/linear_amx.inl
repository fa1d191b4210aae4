// Products in tiles: sixteen rows of 64 codes by 64 x 16 weights, or of 32 bf16 by 32 x 16, which is one kilobyte of
// the packed panel as it lies. Sums of codes are exact. Two tiles of rows by two of weights fill the eight registers:
// 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights.

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

// A block in bytes: a panel has sixteen times the bytes of a row.
struct Operands {
    const uint8_t *rows, *panels;
    long row_bytes, ahead;
};

// Sums [rows][16 C], integers or floats; `start` has those that every row begins with. The numbers of tiles are part of
// the instructions, so each of the four shapes of a block is written out.
template <int C, bool two, class Sum>
INGOT_INLINE void multiply_tiles(const Operands& of, Sum* sums, const Sum* start) {
    constexpr long row_of_sums = C * 64;
    constexpr bool is_float = static_cast<Sum>(0.5f) > 0;
    const long row_bytes = of.row_bytes;
    // Stride 0: all rows start from the same sums.
    _tile_loadd(0, start, 0);
    if constexpr (C == 2) _tile_loadd(1, start + 16, 0);
    if constexpr (two) _tile_loadd(2, start, 0);
    if constexpr (two && C == 2) _tile_loadd(3, start + 16, 0);
    for (long at = 0; at < row_bytes; at += 64) {
        for (long line = 0; line < 1024 && of.ahead > 0; line += 64)
            for (long c = 0; c < C; ++c)
                __builtin_prefetch(of.panels + 16 * row_bytes * c + 16 * at + line + of.ahead);
        _tile_loadd(4, of.rows + at, row_bytes);
        _tile_loadd(6, of.panels + 16 * at, 64);
        if constexpr (is_float) _tile_dpbf16ps(0, 4, 6);
        else _tile_dpbusd(0, 4, 6);
        if constexpr (two) {
            _tile_loadd(5, of.rows + 16 * row_bytes + at, row_bytes);
            if constexpr (is_float) _tile_dpbf16ps(2, 5, 6);
            else _tile_dpbusd(2, 5, 6);
        }
        if constexpr (C == 2) {
            _tile_loadd(7, of.panels + 16 * row_bytes + 16 * at, 64);
            if constexpr (is_float) _tile_dpbf16ps(1, 4, 7);
            else _tile_dpbusd(1, 4, 7);
        }
        if constexpr (two && C == 2) {
            if constexpr (is_float) _tile_dpbf16ps(3, 5, 7);
            else _tile_dpbusd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, row_of_sums);
    if constexpr (C == 2) _tile_stored(1, sums + 16, row_of_sums);
    if constexpr (two) _tile_stored(2, sums + 16 * C * 16, row_of_sums);
    if constexpr (two && C == 2) _tile_stored(3, sums + 16 * C * 16 + 16, row_of_sums);
}

template <int C, class Sum>
INGOT_INLINE void multiply_in_tiles(int32_t rows, int32_t& prepared, const Operands& of, Sum* sums, const Sum* start) {
    if (prepared != rows) shape_tiles(rows);
    prepared = rows;
    written(start);
    if (rows > 16)
        multiply_tiles<C, true>(of, sums, start);
    else
        multiply_tiles<C, false>(of, sums, start);
}

template <int C>
void multiply(int32_t rows, Rows& part, int32_t* sums) {
    alignas(64) int32_t start[16 * C];
    for (int c = 0; c < 16 * C; c += lanes)  // codes are shifted by 128
        store(start + c, _mm512_sub_epi32(zero_int(), _mm512_slli_epi32(load(part.code_sums + c), 7)));
    const auto* panels = reinterpret_cast<const uint8_t*>(part.panels);
    multiply_in_tiles<C>(rows, part.prepared, {part.codes, panels, part.k_pad, part.ahead}, sums, start);
}

// Tiles that hold something make every switch of threads dearer.
void linear_in_tiles(const Linear& job) {
    linear(job);
    _tile_release();
}

}  // namespace
}  // namespace ingot
