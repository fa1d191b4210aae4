// What the threads of a decoder do between meetings.
#include <algorithm>

#include "decoder.h"

namespace ingot {
namespace {

// Bytes of weights, about, that are taken at once: long enough to stream, short enough to help out with.
constexpr int32_t kUnitBytes = 96 * 1024;
constexpr int32_t kGrain = 32;  // columns that the kernels compute at once

int32_t columns_at_once(const Matrix& matrix) {
    const int32_t row_bytes = matrix.form == Form::bf16 ? 2 * matrix.k : matrix.k;
    return std::max(1, kUnitBytes / row_bytes / kGrain) * kGrain;
}

}  // namespace

void Decoder::work(void* self, int number, Barrier& barrier) {
    Decoder& decoder = *static_cast<Decoder*>(self);
    Worker worker{number, barrier, decoder.scratch_[size_t(number)]};
    decoder.forward(worker);
}

void Decoder::forward(Worker& worker) {
    embed(worker);
    worker.barrier.wait();
    for (int32_t layer = 0; layer < model_.spec.layers; ++layer) {
        if (!block(worker, layer)) return;
    }
    answer(worker);
}

Decoder::Range Decoder::share(int32_t total, const Worker& worker) const {
    const int64_t all = total;
    return {int32_t(all * worker.number / share_count_), int32_t(all * (worker.number + 1) / share_count_)};
}

// The next `unit` of `total` pieces of a stage: of the worker's own share, then of the others'.
bool Decoder::take(int32_t stage, const Worker& worker, int32_t total, int32_t unit, Range& range) {
    const int32_t grain = std::min(unit, kGrain);
    const auto share_from = [&](int owner) {
        return owner == share_count_ ? total : int32_t(int64_t(total) * owner / share_count_ / grain * grain);
    };
    for (int i = 0; i < share_count_; ++i) {
        const int owner = (worker.number + i) % share_count_;
        const int32_t size = share_from(owner + 1) - share_from(owner);
        std::atomic<int32_t>& taken = cursors_[size_t(stage) * scratch_.size() + size_t(owner)].taken;
        if (taken.load(std::memory_order_relaxed) >= size) continue;
        const int32_t from = taken.fetch_add(unit, std::memory_order_relaxed);
        if (from >= size) continue;
        range = {share_from(owner) + from, share_from(owner) + std::min(size, from + unit)};
        return true;
    }
    return false;
}

template <class Body>
void Decoder::columns(int32_t stage, const Worker& worker, const Matrix& matrix, Body body) {
    Range range{};
    while (take(stage, worker, matrix.n, columns_at_once(matrix), range)) body(range);
}

// Rows normed and in the form that a matrix reads. Many are shared out, and all meet when they are done.
Decoder::Input Decoder::prepare(Worker& worker, const Matrix& matrix, const Source& source, int32_t rows) {
    const bool is_alone = rows <= kFewRows;
    const Prepared& to = is_alone ? worker.scratch.few : shared_;
    const Range mine = is_alone ? Range{0, rows} : share(rows, worker);
    const int32_t count = mine.last - mine.first;
    Input input{to.operand, source.x, source.ld_x};
    float* const normed = to.normed + mine.first * ld_normed_;
    const auto use = [&](const float* all, int64_t ld) { input.x = all, input.ld_x = ld; };
    if (source.picks != nullptr) {
        for (int32_t i = 0; i < count; ++i) {
            std::copy_n(source.x + source.picks[mine.first + i] * source.ld_x, source.width, normed + i * ld_normed_);
        }
        use(to.normed, ld_normed_);
    }
    for (const NormWeights* norm : source.norms) {
        if (norm == nullptr || norm->weight == nullptr) continue;
        normalize(kernels_, model_.spec, *norm, input.x + mine.first * input.ld_x, input.ld_x, count, source.width,
                  normed, ld_normed_);
        use(to.normed, ld_normed_);
    }
    input.operand.floats = input.x, input.operand.ld_floats = input.ld_x;
    to.operand.fill(kernels_, matrix, input.x + mine.first * input.ld_x, input.ld_x, mine.first, count);
    if (!is_alone) worker.barrier.wait();
    return input;
}

void Decoder::embed(const Worker& worker) {
    const Spec& spec = model_.spec;
    const Range mine = share(rows_, worker);
    for (int32_t row = mine.first; row < mine.last; ++row) {
        const int64_t place = spec.position_offset + int64_t(positions_[size_t(row)]);
        float* x = x_ + row * ld_x_;
        embed_token(model_, ids_[size_t(row)], place, 0, x);
        if (spec.embedding_norm) normalize(kernels_, spec, model_.embedding_norm, x, ld_x_, 1, spec.hidden, x, ld_x_);
    }
}

// False when nothing more is asked of the chunk: its keys and values are stored, and no row leaves the body.
bool Decoder::block(Worker& worker, int32_t layer) {
    const Spec& spec = model_.spec;
    const Block& block = model_.blocks[size_t(layer)];
    const bool is_last = layer + 1 == spec.layers, cuts = is_last && is_cut();
    const Input input = project(worker, layer);
    worker.barrier.wait();
    store(worker, layer);
    if (cuts && worker.number == 0) {
        for (size_t i = 0; i < picks_.size(); ++i) {  // rows move up: none is overwritten before it is read
            const float* from = x_ + picks_[i] * ld_x_;
            if (size_t(picks_[i]) != i) std::copy_n(from, spec.hidden, x_ + int64_t(i) * ld_x_);
        }
    }
    if (is_last && picks_.empty()) return false;
    worker.barrier.wait();
    attend(worker, layer, cuts ? picked_ : all_);
    worker.barrier.wait();
    const int32_t rows = cuts ? int32_t(picks_.size()) : rows_;
    const Input context = prepare(worker, block.o, {context_, ld_context_, spec.q_width(), {}, nullptr}, rows);
    Linear job{};
    job.rows = rows;
    job.plus = spec.norm_first ? x_ : input.x;
    job.ld_plus = spec.norm_first ? ld_x_ : input.ld_x;
    job.out = x_, job.ld_out = ld_x_;
    columns(layer * kParts + kO, worker, block.o, [&](Range range) {
        job.first = range.first, job.last = range.last;
        multiply(kernels_, block.o, context.operand, job);
    });
    worker.barrier.wait();
    mlp(worker, layer, rows);
    worker.barrier.wait();
    return true;
}

// Queries, keys and values of all rows. Where norms come last, the block before left its own to be done here.
Decoder::Input Decoder::project(Worker& worker, int32_t layer) {
    const Spec& spec = model_.spec;
    const Block& block = model_.blocks[size_t(layer)];
    const NormWeights* norm = layer > 0 ? &model_.blocks[size_t(layer) - 1].mlp_norm : nullptr;
    if (spec.norm_first) norm = &block.attention_norm;
    const Input input = prepare(worker, block.qkv, {x_, ld_x_, spec.hidden, {norm}, nullptr}, rows_);
    Linear job{};
    job.rows = rows_;
    job.out = qkv_, job.ld_out = ld_qkv_;
    columns(layer * kParts + kQkv, worker, block.qkv, [&](Range range) {
        job.first = range.first, job.last = range.last;
        multiply(kernels_, block.qkv, input.operand, job);
    });
    return input;
}

// Rotates queries and keys, and puts keys and values into their pages: rows of heads, head after head.
void Decoder::store(const Worker& worker, int32_t layer) {
    Range left = share(rows_ * model_.spec.kv_heads, worker);
    while (left.first < left.last) {
        const int32_t head = left.first / rows_, row = left.first % rows_;
        const int32_t end = std::min(rows_, row + left.last - left.first);
        store_head(layer, head, {row, end});
        left.first += end - row;
    }
}

void Decoder::store_head(int32_t layer, int32_t head, Range rows) {
    const Spec& spec = model_.spec;
    const Block& block = model_.blocks[size_t(layer)];
    const int32_t group = spec.heads / spec.kv_heads, dim = spec.head_dim;
    float* q = qkv_ + rows.first * ld_qkv_ + int64_t(head) * group * dim;
    float* k = qkv_ + rows.first * ld_qkv_ + spec.q_width() + int64_t(head) * dim;
    if (spec.position == Position::rotary) {
        const int32_t* positions = positions_.data() + rows.first;
        const int32_t count = rows.last - rows.first;
        kernels_.rotate(q, ld_qkv_, count, group, dim, spec.rotary_dim, positions, block.cosine, block.sine);
        kernels_.rotate(k, ld_qkv_, count, 1, dim, spec.rotary_dim, positions, block.cosine, block.sine);
    }
    for (int32_t row = rows.first; row < rows.last; ++row, k += ld_qkv_) {
        const Segment& segment = all_.segments[size_t(segment_of_[size_t(row)])];
        const int32_t position = positions_[size_t(row)];
        uint8_t* page = cache_.page(segment.sequence->blocks[size_t(position / kPage)], layer, head);
        kernels_.store_page(cache_.form(), k, k + spec.kv_width(), page, position % kPage);
    }
}

void Decoder::attend(Worker& worker, int32_t layer, const Pieces& pieces) {
    Range range{};
    while (take(layer * kParts + kAttend, worker, pieces.total, 1, range)) {
        const auto after = std::upper_bound(pieces.before.begin(), pieces.before.end(), range.first);
        const size_t s = size_t(after - pieces.before.begin()) - 1;
        attend_piece(worker, layer, pieces.segments[s], range.first - pieces.before[s], pieces.parts);
    }
}

// A piece of a segment: tiles change fastest, so that a head's pages stay in the caches, then parts of its queries.
void Decoder::attend_piece(Worker& worker, int32_t layer, const Segment& segment, int32_t piece, int32_t parts) {
    const Spec& spec = model_.spec;
    const int32_t tiles = (segment.count + kTile - 1) / kTile, tile = piece % tiles;
    const int32_t head = piece / tiles / parts, part = piece / tiles % parts;
    const int32_t first = tile * kTile, rows = std::min(kTile, segment.count - first);
    const int32_t group = spec.heads / spec.kv_heads / parts;
    const int64_t column = (int64_t(head) * parts + part) * group * spec.head_dim;
    const int32_t last_page = (segment.position + first + rows - 1) / kPage;
    for (int32_t page = 0; page <= last_page; ++page) {
        worker.scratch.pages[page] = cache_.page(segment.sequence->blocks[size_t(page)], layer, head);
    }
    PagedAttention job{};
    job.cache = cache_.form();
    job.q = qkv_ + (segment.row + first) * ld_qkv_ + column;
    job.ld_q = ld_qkv_;
    job.out = context_ + (segment.out_row + first) * ld_context_ + column;
    job.ld_out = ld_context_;
    job.pages = worker.scratch.pages;
    job.rows = rows;
    job.group = group;
    job.first_row = segment.position + first;
    job.window = spec.windows[size_t(layer)];
    job.scale = spec.attention_scale;
    job.scratch = worker.scratch.attention;
    kernels_.paged_attention(job);
}

void Decoder::mlp(Worker& worker, int32_t layer, int32_t rows) {
    const Spec& spec = model_.spec;
    const Block& block = model_.blocks[size_t(layer)];
    const NormWeights* norm = spec.norm_first ? &block.mlp_norm : &block.attention_norm;
    const Source source{x_, ld_x_, spec.hidden, {norm}, nullptr};
    Linear up{};
    up.rows = rows;
    up.out = inner_, up.ld_out = ld_inner_;
    Linear gate = up;
    (spec.gated ? gate : up).activation = spec.activation;
    gate.out = gate_;
    if (spec.gated) up.times = gate_, up.ld_times = ld_inner_;
    const bool is_apart = spec.gated && !reads_alike(block.gate, block.up);
    const auto open_gate = [&](const Input& input, Range range) {
        gate.first = range.first, gate.last = range.last;
        multiply(kernels_, block.gate, input.operand, gate);
    };
    if (is_apart) {
        const Input input = prepare(worker, block.gate, source, rows);
        columns(layer * kParts + kGate, worker, block.gate, [&](Range range) { open_gate(input, range); });
        worker.barrier.wait();
    }
    const Input input = prepare(worker, block.up, source, rows);
    columns(layer * kParts + kUp, worker, block.up, [&](Range range) {
        if (spec.gated && !is_apart) open_gate(input, range);
        up.first = range.first, up.last = range.last;
        multiply(kernels_, block.up, input.operand, up);
    });
    worker.barrier.wait();
    const Input inner = prepare(worker, block.down, {inner_, ld_inner_, spec.inner, {}, nullptr}, rows);
    Linear down{};
    down.rows = rows;
    down.plus = spec.norm_first ? x_ : input.x;
    down.ld_plus = spec.norm_first ? ld_x_ : input.ld_x;
    down.out = x_, down.ld_out = ld_x_;
    columns(layer * kParts + kDown, worker, block.down, [&](Range range) {
        down.first = range.first, down.last = range.last;
        multiply(kernels_, block.down, inner.operand, down);
    });
}

// Scores of the picked rows.
void Decoder::answer(Worker& worker) {
    const Spec& spec = model_.spec;
    const int32_t rows = int32_t(picks_.size());
    const NormWeights* last = spec.norm_first ? nullptr : &model_.blocks.back().mlp_norm;
    const bool is_picked = !is_cut() && picks_.size() < size_t(rows_);
    Source source{x_, ld_x_, spec.hidden, {last, &model_.final_norm, &model_.pool_norm},
                  is_picked ? picks_.data() : nullptr};
    for (size_t j = 0; j < model_.head.size(); ++j) {
        const bool is_last = j + 1 == model_.head.size();
        const Matrix& matrix = model_.head[j];
        const Input input = prepare(worker, matrix, source, rows);
        Linear job{};
        job.rows = rows;
        job.activation = spec.head[j].activation;
        job.out = is_last ? out_ + answered_ * spec.width() : head_[j & 1];
        job.ld_out = is_last ? spec.width() : ld_head_;
        columns(spec.layers * kParts + int32_t(j), worker, matrix, [&](Range range) {
            job.first = range.first, job.last = range.last;
            multiply(kernels_, matrix, input.operand, job);
        });
        if (is_last) return;
        worker.barrier.wait();
        const bool is_normed = int32_t(j) == spec.head_norm;
        source = {job.out, ld_head_, matrix.n, {is_normed ? &model_.head_norm : nullptr}, nullptr};
    }
}

}  // namespace ingot
