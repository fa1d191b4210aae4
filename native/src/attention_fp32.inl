// The products of attention in fp32. See attention.inl for what calls them.

namespace ingot {
namespace {

using Cell = float;
constexpr int paired = 1;  // neighbours along a sum that are stored together
constexpr bool values_need_packing = false;

INGOT_INLINE void store_cells(Cell* p, F x) { store(p, x); }

// `lanes` keys side by side: panel[d][lane]. Keys from `count` on are zeros.
void pack_keys(const float* k, int64_t ld, int32_t count, int32_t dim, Cell* panel) {
    for (int32_t d = 0; d < dim; d += lanes) {
        const Mask m = first_lanes(dim - d);
        F block[lanes];
        each<lanes>(INGOT_EACH(i) { block[i] = i < count ? load(k + i * ld + d, m) : set(0.0f); });
        transpose(block);
        const int32_t rows = dim - d < lanes ? dim - d : lanes;
        if (rows == lanes)
            each<lanes>(INGOT_EACH(i) { store(panel + (d + i) * lanes, block[i]); });
        else
            for (int32_t i = 0; i < rows; ++i) store(panel + (d + i) * lanes, block[i]);
    }
}

// Rows without the gaps between them: strides of a power of two would fall into few sets of the cache.
void pack_values(const float* v, int64_t ld, int32_t count, int32_t dim, Cell* values, int64_t ld_values) {
    for (int32_t j = 0; j < count; ++j)
        for (int32_t d = 0; d < dim; d += lanes)
            store(values + j * ld_values + d, load(v + j * ld + d, first_lanes(dim - d)));
}

INGOT_INLINE const Cell* queries(const float* q, int64_t ld, int32_t, int32_t, Cell*, int64_t& ld_cells) {
    ld_cells = ld;
    return q;
}

// R rows of queries by C panels of keys.
template <int R, int C>
INGOT_INLINE void dots(const Cell* q, int64_t ld_q, const Cell* panel, int32_t dim, float* scores, int64_t ld_scores) {
    F acc[R][C];
    each<R * C>(INGOT_EACH(i) { acc[i / C][i % C] = set(0.0f); });
    for (int32_t d = 0; d < dim; ++d) {
        F key[C];
        each<C>(INGOT_EACH(c) { key[c] = load(panel + (c * dim + d) * lanes); });
        each<R>(INGOT_EACH(r) {
            const F query = set(q[r * ld_q + d]);
            each<C>(INGOT_EACH(c) { acc[r][c] = fma(query, key[c], acc[r][c]); });
        });
    }
    each<R * C>(INGOT_EACH(i) { store(scores + (i / C) * ld_scores + (i % C) * lanes, acc[i / C][i % C]); });
}

// R rows of weights by the columns of D vectors of the values; each sum goes to done(row, vector, sum).
template <int R, int D, class Done>
INGOT_INLINE void mix(const Cell* weights, int64_t ld_weights, const Cell* values, int64_t ld_values, int32_t count,
                      Done&& done) {
    F acc[R][D];
    each<R * D>(INGOT_EACH(i) { acc[i / D][i % D] = set(0.0f); });
    for (int32_t j = 0; j < count; ++j, values += ld_values) {
        F value[D];
        each<D>(INGOT_EACH(d) { value[d] = load(values + d * lanes); });
        each<R>(INGOT_EACH(r) {
            const F weight = set(weights[r * ld_weights + j]);
            each<D>(INGOT_EACH(d) { acc[r][d] = fma(weight, value[d], acc[r][d]); });
        });
    }
    each<R * D>(INGOT_EACH(i) { done(i / D, i % D, acc[i / D][i % D]); });
}

}  // namespace
}  // namespace ingot
