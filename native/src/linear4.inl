// x w^T with weights in four bits and rows in eight. A line of 64 bytes holds eight inputs of sixteen outputs: its low
// halves meet four codes of a row, its high halves the next four. Codes of weights are stored + 8, so a group's sum
// begins at -8 times the sum of the row's codes. Included after products4_words.inl or products4_vnni.inl.

namespace ingot {
namespace {

struct Rows4 {
    const int8_t* codes;     // [rows][k]
    const float* scales;     // [rows][groups]
    const int32_t* sums;     // [rows][groups]
    const uint8_t* panels;
    const uint16_t* ratios;  // of the panels' outputs
    int64_t k, group, groups;
    int64_t ahead;           // from a weight to the one that is needed next in its place; 0 where that is cached
};

// Vectors of outputs that go together: panels side by side, or the halves of one. A few rows take both halves at once,
// so that memory is read in the order in which it lies.
template <int R, int C>
constexpr int together4 = lanes == 16 ? C : R <= 2 ? 2 : 1;

// From a vector of outputs to the next one: weights in bytes, ratios.
INGOT_INLINE int64_t next_codes(const Rows4& part) { return lanes == 16 ? 8 * part.k : 4 * lanes; }
INGOT_INLINE int64_t next_ratios(const Rows4& part) { return lanes == 16 ? 16 * part.groups : lanes; }

// Four lines, which are 32 inputs.
template <int R, int V>
INGOT_INLINE void multiply_lines(const Rows4& part, const uint8_t* w, const int8_t* x, I (&sums)[R][V]) {
    I products[R][V];
    each<R * V>(INGOT_EACH(i) { products[i / V][i % V] = begin_products(sums[i / V][i % V]); });
    each<4>(INGOT_EACH(line) {
        I low[V], high[V];
        each<V>(INGOT_EACH(v) {
            const uint8_t* at = w + 64 * line + v * next_codes(part);
            const I both = load_bytes(at);
            low[v] = low_halves(both);
            high[v] = high_halves(both);
            __builtin_prefetch(at + part.ahead);
        });
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

// The products [R][16 C] of R rows and C panels, which still lack the scales of the outputs.
template <int R, int C>
INGOT_APART void multiply_panels4(const Rows4& given, float* products) {
    constexpr int V = together4<R, C>;
    const Rows4 part = given;  // a copy that no store can change
    for (int first = 0; first < 16 * C / lanes; first += V) {
        const uint8_t* w = part.panels + first * next_codes(part);
        const uint16_t* ratios = part.ratios + first * next_ratios(part);
        const int8_t* x = part.codes;
        F totals[R][V];
        each<R * V>(INGOT_EACH(i) { totals[i / V][i % V] = set(0.0f); });
        for (int64_t g = 0; g < part.groups; ++g, ratios += 16) {
            I sums[R][V];
            each<R>(INGOT_EACH(r) {
                const I start = set(-8 * part.sums[r * part.groups + g]);
                each<V>(INGOT_EACH(v) { sums[r][v] = start; });
            });
            int64_t left = part.group;
            do {  // at least once, or the compiler would keep the sums from before for the case of never
                multiply_lines(part, w, x, sums);
                w += 256, x += 32, left -= 32;
            } while (left > 0);
            F ratio[V];
            each<V>(INGOT_EACH(v) { ratio[v] = load_halves(ratios + v * next_ratios(part)); });
            each<R>(INGOT_EACH(r) {
                const F scale = set(part.scales[r * part.groups + g]);
                each<V>(INGOT_EACH(v) { totals[r][v] = fma(to_float(sums[r][v]), ratio[v] * scale, totals[r][v]); });
            });
        }
        each<R * V>(INGOT_EACH(i) {
            store(products + i / V * 16 * C + (first + i % V) * lanes, totals[i / V][i % V]);
        });
    }
}

template <int R, int C>
INGOT_INLINE void multiply_any4(int32_t rows, const Rows4& part, float* products) {
    if constexpr (R > 1)
        if (rows < R) return multiply_any4<R - 1, C>(rows, part, products);
    multiply_panels4<R, C>(part, products);
}

template <int C>
INGOT_INLINE void over_panels4(const Linear4& job, int32_t row, int32_t rows, int32_t column) {
    const Weights4& w = *job.weights;
    const auto done = finish_of<C, Linear4, float>(job.activation);
    const int64_t k = w.k, groups = w.k / w.group, panel = column / 16;
    alignas(64) float products[rows4_at_once<C> * C * 16];
    Rows4 part = {};
    part.panels = w.codes + panel * k * 8;
    part.ratios = w.ratios + panel * groups * 16;
    part.k = k, part.group = w.group, part.groups = groups;
    in_blocks(row, rows, rows4_at_once<C>, [&](int64_t first, int32_t here, bool last) __attribute__((always_inline)) {
        part.codes = job.x.codes + first * k;
        part.scales = job.x.scales + first * groups;
        part.sums = job.x.sums + first * groups;
        part.ahead = last ? 8 * C * k : 0;  // to the next panels
        multiply_any4<rows4_at_once<C>, C>(here, part, products);
        done(job, static_cast<int32_t>(first), here, column, products);
    });
}

void linear4(const Linear4& job) {
    const Weights4& w = *job.weights;
    constexpr int most = lanes == 16 ? 2 : 1;
    over_columns<most>(job, w.k, rows4_at_once<1>, static_cast<int64_t>(w.n_pad) * w.k / 2,
                       [&](auto panels, int32_t row, int32_t rows, int32_t column) __attribute__((always_inline)) {
                           over_panels4<panels>(job, row, rows, column);
                       });
}

}  // namespace
}  // namespace ingot
