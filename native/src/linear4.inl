// x w^T with weights in four bits and rows in eight. A line of 64 bytes holds eight inputs of sixteen outputs: its low
// halves meet four codes of a row, its high halves the next four. Codes of weights are stored + 8, so a group's sum
// begins at -8 times the sum of the row's codes. Included after products4_words.inl or products4_vnni.inl.

namespace ingot {
namespace {

struct Rows4 {
    const int8_t* codes;     // [rows][k]
    const float* scales;     // [rows][groups]
    const int32_t* sums;     // [rows][groups]
    const uint8_t* panel;
    const uint16_t* ratios;  // of the panel's outputs
    int64_t k, group, groups;
    int64_t ahead;           // from a weight to the one that is needed next in its place; 0 where that is cached
};

// Vectors of a panel that go together: with few rows, all, so that memory is read in the order in which it lies.
template <int R>
constexpr int together4 = lanes == 16 ? 1 : R <= 2 ? 2 : 1;

// Four lines, which are 32 inputs.
template <int R, int V>
INGOT_INLINE void multiply_lines(const Rows4& part, const uint8_t* w, const int8_t* x, I (&sums)[R][V]) {
    I products[R][V];
    each<R * V>(INGOT_EACH(i) { products[i / V][i % V] = begin_products(sums[i / V][i % V]); });
    each<4>(INGOT_EACH(line) {
        I low[V], high[V];
        each<V>(INGOT_EACH(v) {
            const I both = load_bytes(w + 64 * line + 4 * lanes * v);
            low[v] = low_halves(both);
            high[v] = high_halves(both);
        });
        __builtin_prefetch(w + 64 * line + part.ahead);
        each<R>(INGOT_EACH(r) {
            const I codes = four_codes(x + r * part.k + 8 * line);
            each<V>(INGOT_EACH(v) { products[r][v] = add_products(products[r][v], low[v], codes); });
        });
        each<R>(INGOT_EACH(r) {
            const I codes = four_codes(x + r * part.k + 8 * line + 4);
            each<V>(INGOT_EACH(v) { products[r][v] = add_products(products[r][v], high[v], codes); });
        });
    });
    each<R * V>(INGOT_EACH(i) { sums[i / V][i % V] = end_products(sums[i / V][i % V], products[i / V][i % V]); });
}

// The products [R][16] of R rows and one panel, which still lack the scales of the outputs.
template <int R>
INGOT_APART void multiply_panel4(const Rows4& part, float* products) {
    constexpr int V = together4<R>;
    for (int first = 0; first < 16; first += V * lanes) {
        const uint8_t* w = part.panel + 4 * first;
        const int8_t* x = part.codes;
        F totals[R][V];
        each<R * V>(INGOT_EACH(i) { totals[i / V][i % V] = set(0.0f); });
        for (int64_t g = 0; g < part.groups; ++g) {
            I sums[R][V];
            each<R>(INGOT_EACH(r) {
                const I start = set(-8 * part.sums[r * part.groups + g]);
                each<V>(INGOT_EACH(v) { sums[r][v] = start; });
            });
            for (int64_t i = 0; i < part.group; i += 32, w += 256, x += 32) multiply_lines(part, w, x, sums);
            F ratios[V];
            each<V>(INGOT_EACH(v) { ratios[v] = load_halves(part.ratios + 16 * g + first + v * lanes); });
            each<R>(INGOT_EACH(r) {
                const F scale = set(part.scales[r * part.groups + g]);
                each<V>(INGOT_EACH(v) { totals[r][v] = fma(to_float(sums[r][v]), ratios[v] * scale, totals[r][v]); });
            });
        }
        each<R * V>(INGOT_EACH(i) { store(products + i / V * 16 + first + i % V * lanes, totals[i / V][i % V]); });
    }
}

template <int R>
INGOT_INLINE void multiply_any4(int32_t rows, const Rows4& part, float* products) {
    if constexpr (R > 1)
        if (rows < R) return multiply_any4<R - 1>(rows, part, products);
    multiply_panel4<R>(part, products);
}

INGOT_INLINE void over_panel4(const Linear4& job, int32_t row, int32_t rows, int32_t column) {
    const Weights4& w = *job.weights;
    const auto done = finish_of<1, Linear4, float>(job.activation);
    const int64_t k = w.k, groups = w.k / w.group, panel = column / 16;
    alignas(64) float products[rows4_at_once * 16];
    Rows4 part = {};
    part.panel = w.codes + panel * k * 8;
    part.ratios = w.ratios + panel * groups * 16;
    part.k = k, part.group = w.group, part.groups = groups;
    in_blocks(row, rows, rows4_at_once, [&](int64_t first, int32_t here, bool last) __attribute__((always_inline)) {
        part.codes = job.x.codes + first * k;
        part.scales = job.x.scales + first * groups;
        part.sums = job.x.sums + first * groups;
        part.ahead = last ? 8 * k : 0;  // to the next panel
        multiply_any4<rows4_at_once>(here, part, products);
        done(job, static_cast<int32_t>(first), here, column, products);
    });
}

void linear4(const Linear4& job) {
    int32_t together = cached_bytes / job.weights->k;
    together = together < 4 * rows4_at_once ? 4 * rows4_at_once : together;
    for (int32_t row = 0; row < job.rows; row += together) {
        const int32_t rows = job.rows - row < together ? job.rows - row : together;
        for (int32_t column = job.first; column < job.last; column += 16) over_panel4(job, row, rows, column);
    }
}

}  // namespace
}  // namespace ingot
