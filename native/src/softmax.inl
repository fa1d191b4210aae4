// Softmax of the scores of one row, over the keys that it sees.

namespace ingot {
namespace {

constexpr float unseen = -3e38f;  // a score so low that its weight is 0 whatever the others are
constexpr float log2_e = 1.442695041f;

struct Span {
    int32_t from, to;
};

INGOT_INLINE int32_t down(int32_t n, int32_t step) { return n / step * step; }
INGOT_INLINE int32_t up(int32_t n, int32_t step) { return (n + step - 1) / step * step; }

INGOT_INLINE size_t lines(int64_t bytes) { return static_cast<size_t>((bytes + 63) / 64 * 64); }

// What scores are multiplied with, and where the table of what is added, if there is one, has the value of key 0.
struct Scaling {
    float scale;
    const float* relative;
    int64_t zero;
};

// Scales the scores of one row, and finds the largest. Indices of keys count from `base` in `scores`.
INGOT_INLINE F scale_row(const Scaling& by, Span seen, float* scores, int32_t base) {
    const F factor = set(by.scale * log2_e);
    F most = set(unseen);
    int32_t j = down(seen.from, lanes);
    const auto whole = [&] {
        for (; j + lanes <= seen.to; j += lanes) {
            F score = load(scores + j - base) * factor;
            if (by.relative) score = fma(load(by.relative + (by.zero + j)), set(log2_e), score);
            most = maximum(most, score);
            store(scores + j - base, score);
        }
    };
    const auto part = [&] {
        const Mask m = lanes_between(seen.from - j, seen.to - j);
        F score = load(scores + j - base) * factor;
        if (by.relative) score = fma(load(by.relative + (by.zero + j), m), set(log2_e), score);
        score = keep_or(score, m, set(unseen));
        most = maximum(most, score);
        store(scores + j - base, score);
        j += lanes;
    };
    if (j < seen.from) part();
    whole();
    if (j < seen.to) part();
    return most;
}

// Scores to weights, which still lack the division by their sum; put(j, weights) gets a vector of them. Indices count
// from the block's first key.
template <class Put>
INGOT_INLINE F weigh_row(Span seen, int32_t keys, const float* scores, F top, Put&& put) {
    const int32_t begin = down(seen.from, lanes), end = up(seen.to, lanes);
    F total = set(0.0f);
    for (int32_t j = 0; j < begin; j += lanes) put(j, set(0.0f));
    for (int32_t j = begin; j < end; j += lanes) {
        const F weight = power_of_two(load(scores + j) - top);
        total = total + weight;
        put(j, weight);
    }
    for (int32_t j = end; j < keys; j += lanes) put(j, set(0.0f));
    return total;
}

}  // namespace
}  // namespace ingot
