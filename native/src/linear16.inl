// x w^T in bf16. The file that includes this defines `put_rounded`, which rounds two vectors into cells. The set gives
// `multiply16<C>`: the products of up to `rows16_at_once` rows by C panels of sixteen outputs.

namespace ingot {
namespace {

struct Rows16 {
    const Cell* cells;       // [rows][k_pad]
    const uint16_t* panels;
    int64_t k_pad;
    int64_t ahead;           // from a weight to the one that is needed next in its place; 0 where that is cached
    int32_t prepared;        // rows that the machine is set up for; only tiles need it
};

// Products [rows][16 C]. A row's sums have one order, whatever `rows` and C are.
template <int C>
void multiply16(int32_t rows, Rows16& part, float* products);

// The same of exactly R rows, where a set has a loop for each number of them.
template <int R, int C>
void multiply_block16(const Rows16& part, float* products);

template <int R, int C>
INGOT_INLINE void multiply_any16(int32_t rows, const Rows16& part, float* products) {
    if constexpr (R > 1)
        if (rows < R) return multiply_any16<R - 1, C>(rows, part, products);
    multiply_block16<R, C>(part, products);
}

template <int C>
INGOT_INLINE void over_panels16(const Linear16& job, Rows16& part, int32_t row, int32_t rows, int32_t column) {
    const Weights16& w = *job.weights;
    const auto done = finish_of<C, Linear16, float>(job.activation);
    alignas(64) float products[rows16_at_once * C * 16];
    part.panels = w.values + static_cast<int64_t>(column) * w.k_pad;
    in_blocks(row, rows, rows16_at_once, [&](int32_t first, int32_t here, bool last) __attribute__((always_inline)) {
        part.cells = static_cast<const Cell*>(job.cells) + static_cast<int64_t>(first) * w.k_pad;
        part.ahead = last ? 16 * C * part.k_pad : 0;
        multiply16<C>(here, part, products);
        done(job, first, here, column, products);
    });
}

void linear16(const Linear16& job) {
    constexpr int most = lanes == 16 ? 2 : 1, cell_bytes = sizeof(Cell);
    const Weights16& w = *job.weights;
    const int64_t weight_bytes = static_cast<int64_t>(w.n_pad) * w.k_pad * 2;
    Rows16 part = {nullptr, nullptr, w.k_pad, 0, 0};
    over_columns<most>(job, w.k_pad * cell_bytes, rows16_at_once, weight_bytes,
                       [&](auto panels, int32_t row, int32_t rows, int32_t column) __attribute__((always_inline)) {
                           over_panels16<panels>(job, part, row, rows, column);
                       });
}

void round_rows(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t k_pad, void* cells) {
    for (int32_t r = 0; r < rows; ++r, x += ld) {
        Cell* to = static_cast<Cell*>(cells) + static_cast<int64_t>(r) * k_pad;
        int32_t i = 0;
        for (; i + 2 * lanes <= k; i += 2 * lanes) put_rounded(to + i, load(x + i), load(x + i + lanes));
        for (; i < k_pad; i += 2 * lanes)
            put_rounded(to + i, load(x + i, first_lanes(k - i)), load(x + i + lanes, first_lanes(k - i - lanes)));
    }
}

}  // namespace
}  // namespace ingot
