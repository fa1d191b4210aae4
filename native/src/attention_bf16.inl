// The products of attention in bf16 with fp32 sums: one instruction adds two products per lane, so neighbours along
// a sum lie together. See attention.inl for what calls these.

namespace ingot {
namespace {

using Cell = uint16_t;
constexpr int paired = 2;
constexpr bool values_need_packing = true;

// x in the low half, y in the high half.
INGOT_INLINE I two_to_bf16(F x, F y) { return reinterpret_cast<I>(_mm512_cvtne2ps_pbh(y, x)); }

INGOT_INLINE void store_cells(Cell* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

INGOT_INLINE F pair_of(const Cell* p) {
    int32_t two;
    __builtin_memcpy(&two, p, sizeof two);
    return _mm512_castsi512_ps(_mm512_set1_epi32(two));
}

INGOT_INLINE F dot2(F acc, F x, F y) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y));
}

// Sixteen keys side by side: panel[d / 2][key][2]. Keys from `count` on are zeros.
void pack_keys(const float* k, int64_t ld, int32_t count, int32_t dim, Cell* panel) {
    const int32_t pairs = (dim + 1) / 2;
    for (int32_t d = 0; d < dim; d += 2 * lanes) {
        const Mask low = first_lanes(dim - d), high = first_lanes(dim - d - lanes);
        F block[lanes];
        each<lanes>(INGOT_EACH(i) {
            const float* key = k + i * ld + d;
            block[i] = set(0.0f);
            if (i < count) block[i] = _mm512_castsi512_ps(two_to_bf16(load(key, low), load(key + lanes, high)));
        });
        transpose(block);
        float* to = reinterpret_cast<float*>(panel) + d / 2 * lanes;
        const int32_t rows = pairs - d / 2 < lanes ? pairs - d / 2 : lanes;
        if (rows == lanes)
            each<lanes>(INGOT_EACH(i) { store(to + i * lanes, block[i]); });
        else
            for (int32_t i = 0; i < rows; ++i) store(to + i * lanes, block[i]);
    }
}

// Two values side by side: values[j / 2][d][2].
void pack_values(const float* v, int64_t ld, int32_t count, int32_t dim, Cell* values, int64_t ld_values) {
    alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const I interleave = _mm512_load_si512(order);
    for (int32_t j = 0; j < count; j += 2, values += ld_values, v += 2 * ld)
        for (int32_t d = 0; d < dim; d += lanes) {
            const Mask m = first_lanes(dim - d);
            const F next = j + 1 < count ? load(v + ld + d, m) : set(0.0f);
            const I two = two_to_bf16(load(v + d, m), next);
            _mm512_storeu_si512(values + 2 * d, _mm512_permutexvar_epi16(interleave, two));
        }
}

INGOT_INLINE const Cell* queries(const float* q, int64_t ld, int32_t rows, int32_t dim, Cell* cells,
                                 int64_t& ld_cells) {
    ld_cells = (dim + 2 * lanes - 1) / (2 * lanes) * (2 * lanes);
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t d = 0; d < dim; d += 2 * lanes) {
            const F low = load(q + r * ld + d, first_lanes(dim - d));
            const F high = load(q + r * ld + d + lanes, first_lanes(dim - d - lanes));
            _mm512_storeu_si512(cells + r * ld_cells + d, two_to_bf16(low, high));
        }
    return cells;
}

template <int R, int C>
INGOT_INLINE void dots(const Cell* q, int64_t ld_q, const Cell* panel, int32_t dim, float* scores, int64_t ld_scores) {
    const int32_t pairs = (dim + 1) / 2;
    const float* keys = reinterpret_cast<const float*>(panel);
    F acc[R][C];
    each<R * C>(INGOT_EACH(i) { acc[i / C][i % C] = set(0.0f); });
    for (int32_t d = 0; d < pairs; ++d) {
        F key[C];
        each<C>(INGOT_EACH(c) { key[c] = load(keys + (c * pairs + d) * lanes); });
        each<R>(INGOT_EACH(r) {
            const F query = pair_of(q + r * ld_q + 2 * d);
            each<C>(INGOT_EACH(c) { acc[r][c] = dot2(acc[r][c], query, key[c]); });
        });
    }
    each<R * C>(INGOT_EACH(i) { store(scores + (i / C) * ld_scores + (i % C) * lanes, acc[i / C][i % C]); });
}

template <int R, int D, class Done>
INGOT_INLINE void mix(const Cell* weights, int64_t ld_weights, const Cell* values, int64_t ld_values, int32_t count,
                      Done&& done) {
    F acc[R][D];
    each<R * D>(INGOT_EACH(i) { acc[i / D][i % D] = set(0.0f); });
    for (int32_t j = 0; j < count; j += 2, values += ld_values) {
        F value[D];
        each<D>(INGOT_EACH(d) { value[d] = load(reinterpret_cast<const float*>(values) + d * lanes); });
        each<R>(INGOT_EACH(r) {
            const F weight = pair_of(weights + r * ld_weights + j);
            each<D>(INGOT_EACH(d) { acc[r][d] = dot2(acc[r][d], weight, value[d]); });
        });
    }
    each<R * D>(INGOT_EACH(i) { done(i / D, i % D, acc[i / D][i % D]); });
}

}  // namespace
}  // namespace ingot
