// The table of AMX kernels with tiles that are emulated, for machines without them. All else in it are instructions of
// avx512-vnni-bf16. What the tile instructions do is written from the processor's manual, for palette 1.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

struct Tile {
    alignas(64) uint8_t row[16][64];
};

thread_local Shapes shapes;
thread_local Tile tiles[8];

template <class T>
T value(const Tile& tile, int row, int at) {
    T x;
    std::memcpy(&x, tile.row[row] + at * int(sizeof x), sizeof x);
    return x;
}

template <class T>
void put(Tile& tile, int row, int at, T x) {
    std::memcpy(tile.row[row] + at * int(sizeof x), &x, sizeof x);
}

void load_shapes(const void* from) {
    std::memcpy(&shapes, from, sizeof shapes);
    std::memset(static_cast<void*>(tiles), 0, sizeof tiles);
}

void release() {
    shapes = {};
    std::memset(static_cast<void*>(tiles), 0, sizeof tiles);
}

void load_tile(int tile, const void* base, long stride) {
    std::memset(static_cast<void*>(&tiles[tile]), 0, sizeof(Tile));
    for (int r = 0; r < shapes.rows[tile]; ++r)
        std::memcpy(tiles[tile].row[r], static_cast<const uint8_t*>(base) + r * stride, shapes.bytes[tile]);
}

void store_tile(int tile, void* base, long stride) {
    for (int r = 0; r < shapes.rows[tile]; ++r)
        std::memcpy(static_cast<uint8_t*>(base) + r * stride, tiles[tile].row[r], shapes.bytes[tile]);
}

void products_of_bytes(int sums, int a, int b) {
    for (int m = 0; m < shapes.rows[sums]; ++m)
        for (int n = 0; n < shapes.bytes[sums] / 4; ++n) {
            auto sum = value<int32_t>(tiles[sums], m, n);
            for (int k = 0; k < shapes.bytes[a] / 4; ++k)
                for (int t = 0; t < 4; ++t)
                    sum += value<uint8_t>(tiles[a], m, 4 * k + t) * value<int8_t>(tiles[b], k, 4 * n + t);
            put(tiles[sums], m, n, sum);
        }
}

// Subnormal numbers are zeros, coming and going.
float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }

float widened(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return flushed(x);
}

// The even products and the odd ones of a tile are summed apart, then both, then what was there.
void products_of_bf16(int sums, int a, int b) {
    for (int m = 0; m < shapes.rows[sums]; ++m)
        for (int n = 0; n < shapes.bytes[sums] / 4; ++n) {
            float parts[2] = {0.0f, 0.0f};
            for (int k = 0; k < shapes.bytes[a] / 4; ++k)
                for (int t = 0; t < 2; ++t) {
                    const float x = widened(value<uint16_t>(tiles[a], m, 2 * k + t));
                    const float w = widened(value<uint16_t>(tiles[b], k, 2 * n + t));
                    parts[t] = flushed(std::fma(x, w, parts[t]));
                }
            const float both = flushed(parts[0] + parts[1]);
            put(tiles[sums], m, n, flushed(flushed(value<float>(tiles[sums], m, n)) + both));
        }
}

}  // namespace

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) load_shapes(from)
#define _tile_release() release()
#define _tile_loadd(tile, base, stride) load_tile(tile, base, stride)
#define _tile_stored(tile, base, stride) store_tile(tile, base, stride)
#define _tile_dpbusd(sums, a, b) products_of_bytes(sums, a, b)
#define _tile_dpbf16ps(sums, a, b) products_of_bf16(sums, a, b)

#include "../src/kernels_amx.cpp"
