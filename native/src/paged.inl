// Attention over the pages of a cache, in fp32. Keys lie side by side and values row by row, so nothing is packed.
// Query heads and tokens go in blocks of rows: heads of one token first. Included after attention.inl.
//
// A row's bits are its own: its scores, their softmax and the weighted sum take the keys that it sees in the order and
// in the lanes of their positions, and no others.

namespace ingot {
namespace {

// Codes of x, `apart` bytes from one to the next; not one byte more.
INGOT_INLINE void scatter_codes(const float* x, int32_t dim, Step step, int8_t* to, int64_t apart) {
    const F factor = set(step.inverse), magic = set(to_lowest_bits);
    alignas(64) uint8_t codes[lanes] = {};
    for (int32_t d = 0; d < dim; d += lanes) {
        if (step.inverse != 0.0f) store_bytes(codes, bits(load(x + d, first_lanes(dim - d)) * factor + magic));
        for (int32_t i = 0; i < lanes && d + i < dim; ++i) to[(d + i) * apart] = static_cast<int8_t>(codes[i]);
    }
}

void store_page(const Cache& cache, const float* key, const float* value, uint8_t* page, int32_t slot) {
    const int32_t dim = cache.head_dim;
    if (cache.bits == 32) {
        auto* keys = reinterpret_cast<float*>(page);
        for (int32_t d = 0; d < dim; ++d) keys[d * kPage + slot] = key[d];
        const size_t bytes = static_cast<size_t>(dim) * sizeof(float);
        __builtin_memcpy(page + values_offset(cache) + static_cast<size_t>(slot) * bytes, value, bytes);
        return;
    }
    const Step steps[2] = {step_of(key, dim), step_of(value, dim)};
    auto* codes = reinterpret_cast<int8_t*>(page);
    auto* scales = reinterpret_cast<float*>(page + scales_offset(cache));
    scatter_codes(key, dim, steps[0], codes + slot, kPage);
    scatter_codes(value, dim, steps[1], codes + values_offset(cache) + static_cast<int64_t>(slot) * dim, 1);
    scales[slot] = steps[0].scale;
    scales[kPage + slot] = steps[1].scale;
}

// Some vectors of what a page holds. Behind codes of eight bits there is always more of the page, so those of a part
// need no mask.
INGOT_INLINE F load_part(const float* p, Mask m) { return load(p, m); }
INGOT_INLINE F load_part(const int8_t* p, Mask) { return load(p); }

// Of the page of position j: what begins at `offset` bytes.
template <class T>
INGOT_INLINE const T* in_page(const PagedAttention& job, int32_t j, size_t offset) {
    return reinterpret_cast<const T*>(job.pages[j / kPage] + offset);
}

// R rows: rows count the heads of a token first.
template <int R>
struct PagedBlock {
    const float* q[R];
    float* out[R];
    Span seen[R];
    Span any, all;         // what some row sees and what every row sees
    float* scores;         // [R][ld], from position `base` on; the weights take their place
    int64_t ld;
    int32_t base;
    float shares[R];       // one over the sum of the weights
};

INGOT_INLINE int64_t paged_stride(int32_t keys) { return up(keys, kPage) + kPage + 16; }

template <int R>
INGOT_INLINE PagedBlock<R> block_of(const PagedAttention& job, int32_t first) {
    PagedBlock<R> block;
    for (int32_t r = 0; r < R; ++r) {
        const int32_t row = (first + r) / job.group, head = (first + r) % job.group, position = job.first_row + row;
        const int32_t from = job.window > 0 && position > job.window ? position - job.window : 0;
        block.seen[r] = {from, position + 1};
        block.q[r] = job.q + row * job.ld_q + static_cast<int64_t>(head) * job.cache.head_dim;
        block.out[r] = job.out + row * job.ld_out + static_cast<int64_t>(head) * job.cache.head_dim;
    }
    // Positions only grow.
    block.any = {block.seen[0].from, block.seen[R - 1].to};
    block.all = {block.seen[R - 1].from, block.seen[0].to};
    if (block.all.from >= block.all.to) block.all = {block.any.to, block.any.to};
    block.scores = static_cast<float*>(job.scratch);
    block.base = down(block.any.from, kPage);
    block.ld = paged_stride(block.any.to - block.base);
    return block;
}

// From a page to the one that is needed next, in bytes; 0 from the last one.
INGOT_INLINE int64_t to_next_page(const PagedAttention& job, int32_t j, int32_t to) {
    return j + kPage < to ? job.pages[j / kPage + 1] - job.pages[j / kPage] : 0;
}

INGOT_INLINE void prefetch(const void* p, int64_t ahead) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(p) + ahead));
}

// Scores of whole pages, before they are scaled. Those of slots that hold nothing are never looked at.
template <class Code, int R>
INGOT_APART void score_pages(const PagedAttention& job, const PagedBlock<R>& block) {
    const PagedBlock<R> at = block;
    const int32_t dim = job.cache.head_dim;
    for (int32_t j = at.base; j < at.any.to; j += lanes * 2) {
        const Code* keys = in_page<Code>(job, j, 0) + j % kPage;
        const int64_t ahead = to_next_page(job, j, at.any.to);
        F acc[R][2];
        each<R * 2>(INGOT_EACH(i) { acc[i / 2][i % 2] = set(0.0f); });
        for (int32_t d = 0; d < dim; ++d, keys += kPage) {
            F key[2];
            each<2>(INGOT_EACH(c) {
                key[c] = load(keys + c * lanes);
                if constexpr (c * lanes * sizeof(Code) % 64 == 0) prefetch(keys + c * lanes, ahead);
            });
            each<R>(INGOT_EACH(r) {
                const F query = set(at.q[r][d]);
                each<2>(INGOT_EACH(c) { acc[r][c] = fma(query, key[c], acc[r][c]); });
            });
        }
        if constexpr (sizeof(Code) == 1) {
            const float* scales = in_page<float>(job, j, scales_offset(job.cache)) + j % kPage;
            each<R * 2>(INGOT_EACH(i) { acc[i / 2][i % 2] = acc[i / 2][i % 2] * load(scales + i % 2 * lanes); });
        }
        float* scores = at.scores + (j - at.base);
        each<R * 2>(INGOT_EACH(i) { store(scores + i / 2 * at.ld + i % 2 * lanes, acc[i / 2][i % 2]); });
    }
}

// Scores to weights. Those of values in eight bits take the values' scales with them.
template <class Code, int R>
INGOT_APART void softmax_pages(const PagedAttention& job, PagedBlock<R>& block) {
    F most[R], total[R];
    float top[R];
    for (int32_t r = 0; r < R; ++r)
        most[r] = scale_row({job.scale, nullptr, 0}, block.seen[r], block.scores + r * block.ld, block.base);
    each<R>(INGOT_EACH(r) { top[r] = highest(most[r]); });
    for (int32_t r = 0; r < R; ++r) {
        float* scores = block.scores + r * block.ld;
        const Span here = {block.seen[r].from - block.base, block.seen[r].to - block.base};
        total[r] = weigh_row(here, here.to, scores, set(top[r]), [&](int32_t j, F weight)
                                 __attribute__((always_inline)) {
            if constexpr (sizeof(Code) == 1) {
                const int32_t position = block.base + j;
                const float* scales = in_page<float>(job, position, scales_offset(job.cache)) + kPage;
                weight = weight * load(scales + position % kPage);
            }
            store(scores + j, weight);
        });
    }
    each<R>(INGOT_EACH(r) { block.shares[r] = 1.0f / sum(total[r]); });
}

// Vectors of columns that go together with R rows.
template <int R>
constexpr int columns_at_once = lanes == 16 && R <= 4 ? 4 : wide<R>;

// The weighted sums of D vectors of columns from d on, the last of them perhaps a part.
template <class Code, int R, int D>
INGOT_APART void mix_pages(const PagedAttention& job, const PagedBlock<R>& block, int32_t d) {
    const PagedBlock<R> at = block;
    const int32_t dim = job.cache.head_dim;
    const size_t values = values_offset(job.cache);
    const Mask part = first_lanes(dim - d - (D - 1) * lanes);
    F acc[R][D];
    each<R * D>(INGOT_EACH(i) { acc[i / D][i % D] = set(0.0f); });
    const auto over = [&](int32_t from, int32_t to, auto ragged) __attribute__((always_inline)) {
        for (int32_t j = from; j < to;) {
            const Code* value = in_page<Code>(job, j, values) + j % kPage * dim + d;
            const int64_t ahead = to_next_page(job, j, at.any.to);
            const int32_t end = down(j, kPage) + kPage < to ? down(j, kPage) + kPage : to;
            for (; j < end; ++j, value += dim) {
                F column[D];
                each<D>(INGOT_EACH(i) {
                    column[i] = i + 1 < D ? load(value + i * lanes) : load_part(value + i * lanes, part);
                    if constexpr (i * lanes * sizeof(Code) % 64 == 0) prefetch(value + i * lanes, ahead);
                });
                each<R>(INGOT_EACH(r) {
                    if constexpr (decltype(ragged)::value)
                        if (j < at.seen[r].from || j >= at.seen[r].to) return;
                    const F weight = set(at.scores[r * at.ld + (j - at.base)]);
                    each<D>(INGOT_EACH(i) { acc[r][i] = fma(weight, column[i], acc[r][i]); });
                });
            }
        }
    };
    over(at.any.from, at.all.from, Index<1>{});
    over(at.all.from, at.all.to, Index<0>{});
    over(at.all.to, at.any.to, Index<1>{});
    each<R * D>(INGOT_EACH(i) {
        float* out = at.out[i / D] + d + i % D * lanes;
        const F mean = acc[i / D][i % D] * set(at.shares[i / D]);
        if constexpr (i % D + 1 < D)
            store(out, mean);
        else
            store(out, mean, part);
    });
}

template <class Code, int R>
INGOT_APART void attend_pages(const PagedAttention& job, int32_t first) {
    PagedBlock<R> block = block_of<R>(job, first);
    score_pages<Code, R>(job, block);
    softmax_pages<Code, R>(job, block);
    int32_t d = 0;
    constexpr int D = columns_at_once<R>;
    for (; d + (D - 1) * lanes < job.cache.head_dim; d += D * lanes) mix_pages<Code, R, D>(job, block, d);
    for (; d + lanes < job.cache.head_dim; d += 2 * lanes) mix_pages<Code, R, 2>(job, block, d);
    for (; d < job.cache.head_dim; d += lanes) mix_pages<Code, R, 1>(job, block, d);
}

template <class Code, int R>
INGOT_INLINE void attend_any_pages(const PagedAttention& job, int32_t first, int32_t rows) {
    if constexpr (R > 1)
        if (rows < R) return attend_any_pages<Code, R - 1>(job, first, rows);
    attend_pages<Code, R>(job, first);
}

void paged_attention(const PagedAttention& job) {
    in_blocks(0, job.rows * job.group, row_block, [&](int32_t first, int32_t rows, bool) {
        if (job.cache.bits == 8)
            attend_any_pages<int8_t, row_block>(job, first, rows);
        else
            attend_any_pages<float, row_block>(job, first, rows);
    });
}

size_t paged_scratch(const Cache&, int32_t rows, int32_t group, int32_t keys) {
    const int64_t together = static_cast<int64_t>(rows) * group < row_block ? rows * group : row_block;
    return lines(together * paged_stride(keys) * static_cast<int64_t>(sizeof(float)));
}

}  // namespace
}  // namespace ingot
