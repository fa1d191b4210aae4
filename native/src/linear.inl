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

// Rows are cut into equal blocks, so that none is much smaller than the others, and all rows that stay in the
// second-level cache go over a panel before the next panel is read.
constexpr int32_t cached_bytes = 256 * 1024;

// One vector of one row, where every lane counts and where only the lanes of a mask do.
template <Activation activation, class... OptionalMask>
INGOT_INLINE void finish_vector(const Linear& job, int64_t row, int64_t column, F sums, F scale, F bias,
                                OptionalMask... mask) {
    F y = activate<activation>(fma(sums, scale, bias));
    if (job.times) y = y * load(job.times + row * job.ld_times + column, mask...);
    if (job.plus) y = y + load(job.plus + row * job.ld_plus + column, mask...);
    store(job.out + row * job.ld_out + column, y, mask...);
}

template <Activation activation, int C>
void finish(const Linear& job, int32_t row, int32_t rows, int32_t column, const int32_t* sums) {
    constexpr int vectors = 16 * C / lanes;
    const Weights8& w = *job.weights;
    const Linear to = job;  // a copy that no store can change: its pointers stay in registers
    F scales[vectors], bias[vectors];
    each<vectors>(INGOT_EACH(i) {
        scales[i] = load(w.scales + column + i * lanes);
        bias[i] = load(w.bias + column + i * lanes);
    });
    const int32_t count = job.last - column;
    for (int64_t r = row; r < row + rows; ++r, sums += 16 * C) {
        const F scale = set(to.scales[r]);
        if (count >= 16 * C) {
            each<vectors>(INGOT_EACH(i) {
                const F total = to_float(load(sums + i * lanes));
                finish_vector<activation>(to, r, column + i * lanes, total, scale * scales[i], bias[i]);
            });
        } else {
            each<vectors>(INGOT_EACH(i) {
                const F total = to_float(load(sums + i * lanes));
                finish_vector<activation>(to, r, column + i * lanes, total, scale * scales[i], bias[i],
                                          first_lanes(count - i * lanes));
            });
        }
    }
}

using Finish = void (*)(const Linear&, int32_t, int32_t, int32_t, const int32_t*);

template <int C>
INGOT_INLINE Finish finish_of(Activation activation) {
    switch (activation) {
        case Activation::gelu: return finish<Activation::gelu, C>;
        case Activation::gelu_tanh: return finish<Activation::gelu_tanh, C>;
        case Activation::relu: return finish<Activation::relu, C>;
        case Activation::silu: return finish<Activation::silu, C>;
        case Activation::tanh: return finish<Activation::tanh, C>;
        case Activation::none: break;
    }
    return finish<Activation::none, C>;
}

template <int C>
INGOT_INLINE void over_panels(const Linear& job, Rows& part, int32_t row, int32_t rows, int32_t column) {
    const Weights8& w = *job.weights;
    const Finish done = finish_of<C>(job.activation);
    alignas(64) int32_t sums[rows_at_once * C * 16];
    part.codes = job.codes + static_cast<int64_t>(row) * w.k_pad;
    part.panels = w.codes + static_cast<int64_t>(column) * w.k_pad;
    part.code_sums = w.sums + column;
    for (int32_t blocks = (rows + rows_at_once - 1) / rows_at_once; blocks > 0; --blocks) {
        const int32_t here = (rows + blocks - 1) / blocks;
        // While the last rows use these panels, the next ones come from memory.
        part.ahead = blocks == 1 ? 16 * C * part.k_pad : 0;
        multiply<C>(here, part, sums);
        done(job, row, here, column, sums);
        part.codes += here * part.k_pad;
        row += here;
        rows -= here;
    }
}

void linear(const Linear& job) {
    const Weights8& w = *job.weights;
    Rows part = {nullptr, nullptr, nullptr, w.k_pad, 0, 0};
    int32_t together = cached_bytes / w.k_pad;
    together = together < 4 * rows_at_once ? 4 * rows_at_once : together;
    for (int32_t row = 0; row < job.rows; row += together) {
        const int32_t rows = job.rows - row < together ? job.rows - row : together;
        int32_t column = job.first;
        // One row reads weights as fast as memory gives them, which is fastest in the order in which they lie.
        for (; rows > 1 && column + 16 < job.last; column += 32) over_panels<2>(job, part, row, rows, column);
        for (; column < job.last; column += 16) over_panels<1>(job, part, row, rows, column);
    }
}

}  // namespace
}  // namespace ingot
