// Attention of a thread's rows: which keys a row sees, and calls of the kernel.
#include <algorithm>

#include "transformer.h"

namespace ingot {

// Keys that the tile of rows around `position` may see. They depend on the place in the sequence alone, never on
// which rows are computed together: the order of a row's sums, and so its bits, stay the same.
Transformer::Keys Transformer::keys_of(int32_t layer, int32_t position, int32_t length) const {
    const int32_t window = model_.spec.windows[size_t(layer)];
    const int32_t tile = position / kTile * kTile;
    Keys keys{0, length};
    if (window > 0) {
        keys.first = std::max(0, tile - window);
        keys.last = int32_t(std::min<int64_t>(length, int64_t(tile) + kTile + window));
    }
    if (model_.spec.causal) keys.last = std::min(keys.last, tile + kTile);
    return keys;
}

void Transformer::attend_sequence(int32_t layer, int32_t s, int32_t position, int32_t rows, float* context,
                                  Scratch& scratch) {
    const Spec& spec = model_.spec;
    const Keys keys = keys_of(layer, position, piece_.length(s));
    const float* qkv = qkv_[layer & 1] + piece_.start(s) * ld_qkv_;
    Attention job{};
    job.ld_q = job.ld_k = job.ld_v = ld_qkv_;
    job.ld_out = ld_context_;
    job.rows = rows;
    job.keys = keys.last - keys.first;
    job.head_dim = spec.head_dim;
    job.first_row = position - keys.first;
    job.causal = spec.causal;
    job.window = spec.windows[size_t(layer)];
    job.scale = spec.attention_scale;
    job.relative_zero = spec.positions - 1;
    job.scratch = scratch.attention;
    const int32_t group = spec.heads / spec.kv_heads;
    for (int32_t head = 0; head < spec.heads; ++head) {
        const int64_t column = int64_t(head) * spec.head_dim, kv_column = int64_t(head / group) * spec.head_dim;
        job.q = qkv + position * ld_qkv_ + column;
        job.k = qkv + keys.first * ld_qkv_ + spec.q_width() + kv_column;
        job.v = job.k + spec.kv_width();
        job.out = context + column;
        if (model_.relative != nullptr) job.relative = model_.relative + head * (2 * int64_t(spec.positions) - 1);
        kernels_.attention(job);
    }
}

void Transformer::attend(int32_t layer, int32_t row, int32_t rows, float* context, Scratch& scratch) {
    const bool is_tiled = model_.spec.causal || model_.spec.windows[size_t(layer)] > 0;
    int32_t s = piece_.sequence_of(row);
    for (int32_t done = 0; done < rows;) {
        const int32_t position = row + done - piece_.start(s);
        int32_t count = std::min(rows - done, piece_.length(s) - position);
        if (is_tiled) count = std::min(count, kTile - position % kTile);
        attend_sequence(layer, s, position, count, context + done * ld_context_, scratch);
        done += count;
        if (position + count == piece_.length(s)) ++s;
    }
}

}  // namespace ingot
