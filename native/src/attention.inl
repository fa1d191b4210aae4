// Attention: keys and values are packed once per call, then blocks of rows go through scores, softmax and the
// weighted sum while their scores are in the first-level cache. Included after attention_fp32.inl or
// attention_bf16.inl, which give `Cell` and the two products, and after softmax.inl.
//
// A row's bits are its own: every sum runs over the keys in one order, and a key that a row does not see, but its
// block mates do, enters with the weight 0.

namespace ingot {
namespace {

// The keys that a row sees.
INGOT_INLINE Span seen_by(const Attention& job, int32_t row) {
    const int64_t position = static_cast<int64_t>(job.first_row) + row, window = job.window;
    int64_t from = 0, to = job.keys;
    if (job.causal && position + 1 < to) to = position + 1;
    if (window > 0 && position + window + 1 < to) to = position + window + 1;
    if (window > 0 && position - window > from) from = position - window;
    if (from >= to) return {0, 0};
    return {static_cast<int32_t>(from), static_cast<int32_t>(to)};
}

INGOT_INLINE Span seen_by_any(const Attention& job, int32_t row, int32_t rows) {
    Span all = {job.keys, 0};
    for (int32_t r = row; r < row + rows; ++r) {
        const Span one = seen_by(job, r);
        if (one.from == one.to) continue;
        all.from = one.from < all.from ? one.from : all.from;
        all.to = one.to > all.to ? one.to : all.to;
    }
    return all.from < all.to ? all : Span{0, 0};
}

// Where things lie in the scratch memory. Indices of keys count from `base`.
struct Packed {
    const Cell* values;
    Cell* keys;
    Cell* queries;
    Cell* weights;
    float* scores;
    int64_t ld_values, ld_scores;  // the latter of weights too
    int32_t base;
    bool keys_are_packed;
};

INGOT_INLINE int64_t score_stride(int32_t keys) { return up(keys, lanes) + 2 * lanes; }
INGOT_INLINE int64_t panel_cells(int32_t dim) { return static_cast<int64_t>(up(dim, paired)) * lanes; }

size_t attention_scratch(int32_t keys, int32_t head_dim, int32_t) {
    const int64_t cell = sizeof(Cell), padded = up(keys, lanes) + 4 * lanes;
    return lines(padded * up(head_dim, paired) * cell) + lines(padded * up(head_dim, lanes) * cell) +
           lines(row_block * up(head_dim, 2 * lanes) * cell) + lines(row_block * score_stride(keys) * 4) * 2;
}

// All rows of a block step by step together: what takes long in one row, across its lanes, overlaps with the others.
template <int R>
INGOT_APART void softmax(const Attention& job, const Packed& at, int32_t row, Span block, float* shares) {
    const int32_t first = down(block.from, lanes);
    Span seen[R];
    F most[R], total[R];
    float top[R];
    for (int32_t r = 0; r < R; ++r) {
        seen[r] = seen_by(job, row + r);
        const int64_t zero = static_cast<int64_t>(job.relative_zero) - job.first_row - row - r;
        most[r] = scale_row({job.scale, job.relative, zero}, seen[r], at.scores + r * at.ld_scores, at.base);
    }
    each<R>(INGOT_EACH(r) { top[r] = highest(most[r]); });
    for (int32_t r = 0; r < R; ++r) {
        const int64_t from = r * at.ld_scores + first - at.base;
        if (seen[r].from == seen[r].to) seen[r] = {first, first};
        const Span here = {seen[r].from - first, seen[r].to - first};
        total[r] = weigh_row(here, block.to - first, at.scores + from, set(top[r]), [&](int32_t j, F weight)
                                 __attribute__((always_inline)) { store_cells(at.weights + from + j, weight); });
    }
    each<R>(INGOT_EACH(r) { shares[r] = seen[r].from < seen[r].to ? 1.0f / sum(total[r]) : 0.0f; });
}

template <int R, int D>
INGOT_APART void mix_columns(const Attention& job, const Packed& at, int32_t row, Span block, int32_t d,
                             const float* shares) {
    const int32_t from = down(block.from - at.base, paired);
    mix<R, D>(at.weights + from, at.ld_scores, at.values + from / paired * at.ld_values + d * paired, at.ld_values,
              block.to - at.base - from, [&](int r, int i, F total) __attribute__((always_inline)) {
                  // Adding 0 makes a -0 that a vanishing product left behind the same 0 in any company.
                  const F share = total * set(shares[r]) + set(0.0f);
                  const int32_t column = d + i * lanes;
                  store(job.out + (row + r) * job.ld_out + column, share, first_lanes(job.head_dim - column));
              });
}

// Vectors of keys, or of columns, that go together with R rows: with few rows it takes more to hide the latency of
// the products.
template <int R>
constexpr int wide = R <= 2 ? 4 : 2;

template <int R>
INGOT_APART void score_block(const Attention& job, const Packed& at, const Cell* q, int64_t ld_q, Span block) {
    const int64_t panel = panel_cells(job.head_dim);
    for (int32_t j = down(block.from, lanes); j < block.to;) {
        const int32_t left = (block.to - j + lanes - 1) / lanes;
        const int32_t panels = left >= wide<R> ? wide<R> : left >= 2 ? 2 : 1;
        const int64_t key = j - at.base;
        Cell* keys = at.keys_are_packed ? at.keys + key / lanes * panel : at.keys;
        if (!at.keys_are_packed)
            for (int32_t p = 0; p < panels; ++p)
                pack_keys(job.k + (j + p * lanes) * job.ld_k, job.ld_k, job.keys - j - p * lanes, job.head_dim,
                          keys + p * panel);
        if (panels == wide<R>)
            dots<R, wide<R>>(q, ld_q, keys, job.head_dim, at.scores + key, at.ld_scores);
        else if (panels == 2)
            dots<R, 2>(q, ld_q, keys, job.head_dim, at.scores + key, at.ld_scores);
        else
            dots<R, 1>(q, ld_q, keys, job.head_dim, at.scores + key, at.ld_scores);
        j += panels * lanes;
    }
}

template <int R>
void attend(const Attention& job, const Packed& at, int32_t row) {
    const Span block = seen_by_any(job, row, R);
    int64_t ld_q;
    const Cell* q = queries(job.q + row * job.ld_q, job.ld_q, R, job.head_dim, at.queries, ld_q);
    score_block<R>(job, at, q, ld_q, block);
    float shares[R];
    softmax<R>(job, at, row, block, shares);
    int32_t d = 0;
    for (; d + (wide<R> - 1) * lanes < job.head_dim; d += wide<R> * lanes)
        mix_columns<R, wide<R>>(job, at, row, block, d, shares);
    for (; d + lanes < job.head_dim; d += 2 * lanes) mix_columns<R, 2>(job, at, row, block, d, shares);
    if (d < job.head_dim) mix_columns<R, 1>(job, at, row, block, d, shares);
}

template <int R>
INGOT_INLINE void attend_any(const Attention& job, const Packed& at, int32_t row, int32_t rows) {
    if constexpr (R > 1)
        if (rows < R) return attend_any<R - 1>(job, at, row, rows);
    attend<R>(job, at, row);
}

INGOT_INLINE Packed pack(const Attention& job, Span all) {
    const int64_t cell = sizeof(Cell), padded = up(job.keys, lanes) + 4 * lanes;
    auto* memory = static_cast<unsigned char*>(job.scratch);
    const auto take = [&memory](int64_t bytes) {
        unsigned char* here = memory;
        memory += lines(bytes);
        return here;
    };
    Packed at;
    at.base = down(all.from, lanes);
    at.keys = reinterpret_cast<Cell*>(take(padded * up(job.head_dim, paired) * cell));
    auto* values = reinterpret_cast<Cell*>(take(padded * up(job.head_dim, lanes) * cell));
    at.queries = reinterpret_cast<Cell*>(take(row_block * up(job.head_dim, 2 * lanes) * cell));
    at.ld_scores = score_stride(job.keys);
    at.scores = reinterpret_cast<float*>(take(row_block * at.ld_scores * 4));
    at.weights = reinterpret_cast<Cell*>(take(row_block * at.ld_scores * 4));
    if constexpr (sizeof(Cell) == sizeof(float)) at.weights = reinterpret_cast<Cell*>(at.scores);  // in their place
    // For a few rows packing costs more than it saves: keys go through one small panel, values stay where they are.
    at.keys_are_packed = job.rows > row_block;
    if (at.keys_are_packed)
        for (int32_t j = at.base; j < all.to; j += lanes)
            pack_keys(job.k + j * job.ld_k, job.ld_k, job.keys - j, job.head_dim,
                      at.keys + (j - at.base) / lanes * panel_cells(job.head_dim));
    at.values = values;
    at.ld_values = up(job.head_dim, lanes) * paired;
    const float* v = job.v + at.base * job.ld_v;
    if (values_need_packing || at.keys_are_packed || job.head_dim % lanes != 0) {
        pack_values(v, job.ld_v, all.to - at.base, job.head_dim, values, at.ld_values);
    } else {
        at.values = reinterpret_cast<const Cell*>(v);
        at.ld_values = job.ld_v;
    }
    return at;
}

void attention(const Attention& job) {
    const Span all = seen_by_any(job, 0, job.rows);
    const Packed at = pack(job, all);
    in_blocks(0, job.rows, row_block,
              [&](int32_t row, int32_t rows, bool) { attend_any<row_block>(job, at, row, rows); });
}

}  // namespace
}  // namespace ingot
