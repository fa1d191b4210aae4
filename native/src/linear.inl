// x w^T in eight bits. The instruction set gives `multiply<C>`: the exact sums of up to `rows_at_once` rows by C
// panels of sixteen outputs. Here: which blocks, and what becomes of the sums.

namespace ingot {
namespace {

struct Rows {
    const uint8_t* codes;
    const int8_t* panels;
    const int32_t* code_sums;  // of the panels' outputs
    int64_t k_pad;
    int64_t ahead;             // from a weight to the one that is needed next in its place; 0 where that is cached
    int32_t prepared;          // rows that the machine is set up for; only tiles need it
};

// Sums [rows][16 C].
template <int C>
void multiply(int32_t rows, Rows& part, int32_t* sums);

template <int C>
INGOT_INLINE void over_panels(const Linear& job, Rows& part, int32_t row, int32_t rows, int32_t column) {
    const Weights8& w = *job.weights;
    const auto done = finish_of<C, Linear, int32_t>(job.activation);
    alignas(64) int32_t sums[rows_at_once * C * 16];
    part.panels = w.codes + static_cast<int64_t>(column) * w.k_pad;
    part.code_sums = w.sums + column;
    in_blocks(row, rows, rows_at_once, [&](int32_t first, int32_t here, bool last) __attribute__((always_inline)) {
        part.codes = job.codes + static_cast<int64_t>(first) * w.k_pad;
        // While the last rows use these panels, the next ones come from memory.
        part.ahead = last ? 16 * C * part.k_pad : 0;
        multiply<C>(here, part, sums);
        done(job, first, here, column, sums);
    });
}

void linear(const Linear& job) {
    const Weights8& w = *job.weights;
    Rows part = {nullptr, nullptr, nullptr, w.k_pad, 0, 0};
    over_columns<2>(job, w.k_pad, rows_at_once, static_cast<int64_t>(w.n_pad) * w.k_pad,
                    [&](auto panels, int32_t row, int32_t rows, int32_t column) __attribute__((always_inline)) {
                        over_panels<panels>(job, part, row, rows, column);
                    });
}

}  // namespace
}  // namespace ingot
