// What follows the products of a linear layer, and into which blocks its rows are cut.

namespace ingot {
namespace {

// Rows that stay in the second-level cache all go over a panel of weights before the next panel is read.
constexpr int32_t cached_bytes = 256 * 1024;

// A few rows read weights as fast as memory gives them, and it gives them fastest in the order in which they lie:
// one panel after the other. Two panels side by side are faster where the second-level cache has them.
INGOT_INLINE bool in_order(int32_t rows, int64_t bytes) { return rows == 1 || (rows <= 8 && bytes > (1 << 20)); }

// Equal blocks, so that none is much smaller than the others: block(row, rows, is the last).
template <class Block>
INGOT_INLINE void in_blocks(int32_t row, int32_t rows, int32_t at_once, Block&& block) {
    for (int32_t blocks = (rows + at_once - 1) / at_once; blocks > 0; --blocks) {
        const int32_t here = (rows + blocks - 1) / blocks;
        block(row, here, blocks == 1);
        row += here;
        rows -= here;
    }
}

// All columns of a job in panels, `most` of them together at most: panels(how many, row, rows, column).
template <int most, class Job, class Panels>
INGOT_INLINE void over_columns(const Job& job, int32_t row_bytes, int32_t at_once, int64_t weight_bytes,
                               Panels&& panels) {
    int32_t together = cached_bytes / row_bytes;
    together = together < 4 * at_once ? 4 * at_once : together;
    for (int32_t row = 0; row < job.rows; row += together) {
        const int32_t rows = job.rows - row < together ? job.rows - row : together;
        int32_t column = job.first;
        if constexpr (most == 2)
            if (!in_order(rows, weight_bytes))
                for (; column + 16 < job.last; column += 32) panels(Index<2>{}, row, rows, column);
        for (; column < job.last; column += 16) panels(Index<1>{}, row, rows, column);
    }
}

// What a row's integer sums are worth, given the scales of the outputs.
INGOT_INLINE F total_of(const int32_t* sums) { return to_float(load(sums)); }
INGOT_INLINE F scale_of(const Linear& job, int64_t row, F scales) { return set(job.scales[row]) * scales; }
// The products of groups hold the scales of the row already, and those of bf16 need none.
INGOT_INLINE F total_of(const float* products) { return load(products); }
template <class Job>
INGOT_INLINE F scale_of(const Job&, int64_t, F scales) { return scales; }

template <class Weights>
INGOT_INLINE F scales_at(const Weights& weights, int64_t column) { return load(weights.scales + column); }
INGOT_INLINE F scales_at(const Weights16&, int64_t) { return set(1.0f); }

// One vector of one row, where every lane counts and where only the lanes of a mask do.
template <Activation activation, class Job, class... OptionalMask>
INGOT_INLINE void finish_vector(const Job& job, int64_t row, int64_t column, F total, F scale, F bias,
                                OptionalMask... mask) {
    F y = activate<activation>(fma(total, scale, bias));
    if (job.times) y = y * load(job.times + row * job.ld_times + column, mask...);
    if (job.plus) y = y + load(job.plus + row * job.ld_plus + column, mask...);
    store(job.out + row * job.ld_out + column, y, mask...);
}

// `Total`: integer sums of a Linear, products of a Linear4 or a Linear16; [rows][16 C].
template <Activation activation, int C, class Job, class Total>
void finish(const Job& job, int32_t row, int32_t rows, int32_t column, const Total* totals) {
    constexpr int vectors = 16 * C / lanes;
    const Job to = job;  // a copy that no store can change: its pointers stay in registers
    F scales[vectors], bias[vectors];
    each<vectors>(INGOT_EACH(i) {
        scales[i] = scales_at(*to.weights, column + i * lanes);
        bias[i] = load(to.weights->bias + column + i * lanes);
    });
    const int32_t count = job.last - column;
    for (int64_t r = row; r < row + rows; ++r, totals += 16 * C) {
        if (count >= 16 * C) {
            each<vectors>(INGOT_EACH(i) {
                finish_vector<activation>(to, r, column + i * lanes, total_of(totals + i * lanes),
                                          scale_of(to, r, scales[i]), bias[i]);
            });
        } else {
            each<vectors>(INGOT_EACH(i) {
                finish_vector<activation>(to, r, column + i * lanes, total_of(totals + i * lanes),
                                          scale_of(to, r, scales[i]), bias[i], first_lanes(count - i * lanes));
            });
        }
    }
}

template <class Job, class Total>
using Finish = void (*)(const Job&, int32_t, int32_t, int32_t, const Total*);

template <int C, class Job, class Total>
INGOT_INLINE Finish<Job, Total> finish_of(Activation activation) {
    switch (activation) {
        case Activation::gelu: return finish<Activation::gelu, C, Job, Total>;
        case Activation::gelu_tanh: return finish<Activation::gelu_tanh, C, Job, Total>;
        case Activation::relu: return finish<Activation::relu, C, Job, Total>;
        case Activation::silu: return finish<Activation::silu, C, Job, Total>;
        case Activation::tanh: return finish<Activation::tanh, C, Job, Total>;
        case Activation::none: break;
    }
    return finish<Activation::none, C, Job, Total>;
}

}  // namespace
}  // namespace ingot
