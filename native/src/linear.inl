// x w^T in eight bits. The instruction set gives `multiply<C>`: the exact sums of up to `rows_at_once` rows by C
// panels of sixteen outputs. Here: which blocks, and what becomes of the sums.

namespace ingot {
namespace {

struct Rows {
    const uint8_t* codes;
    const int8_t* panels;
    const int32_t* code_sums;  // of the panels' outputs
    int64_t k_pad;
    int32_t prepared;          // rows that the machine is set up for; only tiles need it
};

// Sums [rows][16 C].
template <int C>
void multiply(int32_t rows, Rows& part, int32_t* sums);

// Rows are cut into equal blocks, so that none is much smaller than the others, and all rows that stay in the
// second-level cache go over a panel before the next panel is read.
constexpr int32_t cached_bytes = 256 * 1024;

template <Activation activation>
void finish(const Linear& job, int32_t row, int32_t rows, int32_t column, int32_t columns, const int32_t* sums) {
    const Weights8& w = *job.weights;
    const int32_t count = job.last - column < columns ? job.last - column : columns;
    for (int32_t r = row; r < row + rows; ++r, sums += columns) {
        const F scale = set(job.scales[r]);
        for (int32_t c = 0; c < count; c += lanes) {
            const Mask m = first_lanes(count - c);
            const int32_t at = column + c;
            F y = fma(to_float(load(sums + c)), scale * load(w.scales + at), load(w.bias + at));
            y = activate<activation>(y);
            if (job.times) y = y * load(job.times + r * job.ld_times + at, m);
            if (job.plus) y = y + load(job.plus + r * job.ld_plus + at, m);
            store(job.out + r * job.ld_out + at, y, m);
        }
    }
}

using Finish = void (*)(const Linear&, int32_t, int32_t, int32_t, int32_t, const int32_t*);

INGOT_INLINE Finish finish_of(Activation activation) {
    switch (activation) {
        case Activation::gelu: return finish<Activation::gelu>;
        case Activation::gelu_tanh: return finish<Activation::gelu_tanh>;
        case Activation::relu: return finish<Activation::relu>;
        case Activation::silu: return finish<Activation::silu>;
        case Activation::tanh: return finish<Activation::tanh>;
        case Activation::none: break;
    }
    return finish<Activation::none>;
}

template <int C>
INGOT_INLINE void over_panels(const Linear& job, Rows& part, int32_t row, int32_t rows, int32_t column, Finish done) {
    const Weights8& w = *job.weights;
    alignas(64) int32_t sums[rows_at_once * C * 16];
    part.codes = job.codes + static_cast<int64_t>(row) * w.k_pad;
    part.panels = w.codes + static_cast<int64_t>(column) * w.k_pad;
    part.code_sums = w.sums + column;
    for (int32_t blocks = (rows + rows_at_once - 1) / rows_at_once; blocks > 0; --blocks) {
        const int32_t here = (rows + blocks - 1) / blocks;
        multiply<C>(here, part, sums);
        done(job, row, here, column, C * 16, sums);
        part.codes += here * part.k_pad;
        row += here;
        rows -= here;
    }
}

void linear(const Linear& job) {
    const Weights8& w = *job.weights;
    const Finish done = finish_of(job.activation);
    Rows part = {nullptr, nullptr, nullptr, w.k_pad, 0};
    int32_t together = cached_bytes / w.k_pad;
    together = together < 4 * rows_at_once ? 4 * rows_at_once : together;
    for (int32_t row = 0; row < job.rows; row += together) {
        const int32_t rows = job.rows - row < together ? job.rows - row : together;
        int32_t column = job.first;
        for (; column + 16 < job.last; column += 32) over_panels<2>(job, part, row, rows, column, done);
        if (column < job.last) over_panels<1>(job, part, row, rows, column, done);
    }
}

}  // namespace
}  // namespace ingot
