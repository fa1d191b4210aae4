#include "transformer.h"

#include <algorithm>

namespace ingot {

Transformer::Transformer(Model model, const Kernels& kernels, int threads)
    : model_(std::move(model)), kernels_(kernels), pool_(threads), scratch_(size_t(pool_.threads())),
      shares_(size_t(pool_.threads()) + 1),
      cursors_((size_t(model_.spec.layers) + 1) * size_t(pool_.threads())) {
    const Spec& spec = model_.spec;
    ld_x_ = stride(spec.hidden);
    ld_qkv_ = stride(spec.qkv_width());
    ld_context_ = stride(spec.q_width());
    ld_inner_ = stride(spec.inner);
    int32_t widest = 0;
    for (size_t j = 0; j + 1 < spec.head.size(); ++j) widest = std::max(widest, spec.head[j].width);
    ld_head_ = widest > 0 ? stride(widest) : 0;
}

// Room for pieces of `rows` rows and sequences of `longest` tokens; nothing to do when it is there.
void Transformer::reserve(int32_t rows, int32_t longest) {
    if (rows <= rows_room_ && longest <= longest_room_) return;
    rows = std::max(rows, rows_room_), longest = std::max(longest, longest_room_);
    rows_room_ = longest_room_ = 0;
    const Spec& spec = model_.spec;
    const size_t attention = kernels_.attention_scratch(longest, spec.head_dim, kBlockRows);
    const auto lay_out = [&](Arena* arena) {
        Room room(arena);
        room.of(x_, size_t(rows) * ld_x_);
        for (float*& buffer : qkv_) room.of(buffer, size_t(rows) * ld_qkv_);
        room.of(positions_, size_t(rows));
        for (Scratch& scratch : scratch_) {
            scratch.operand.lay_out(room, model_.widest_operand(), kBlockRows);
            room.of(scratch.context, size_t(kBlockRows) * ld_context_);
            room.of(scratch.normed, size_t(kBlockRows) * ld_x_);
            room.of(scratch.inner, size_t(kBlockRows) * ld_inner_);
            room.of(scratch.gate, spec.gated ? size_t(kBlockRows) * ld_inner_ : 0);
            room.of(scratch.picked, size_t(kBlockRows) * ld_x_);
            for (float*& buffer : scratch.head) room.of(buffer, size_t(kBlockRows) * ld_head_);
            uint8_t* bytes = nullptr;
            room.of(bytes, attention);
            scratch.attention = bytes;
        }
        return room.size_bytes();
    };
    arena_.reserve(lay_out(nullptr));
    lay_out(&arena_);
    rows_room_ = rows, longest_room_ = longest;
}

void Transformer::run(const Batch& batch, float* out) {
    ThreadPool::Turn turn(pool_);
    for (int64_t first = 0; first < batch.sequences;) {
        const Piece piece = next_piece(batch, first, kPieceRows * turn.threads());
        run_piece(batch, piece, turn, out);
        first = piece.last;
    }
}

void Transformer::run_piece(const Batch& batch, const Piece& piece, ThreadPool::Turn& turn, float* out) {
    const Spec& spec = model_.spec;
    int32_t longest = 0;
    for (int32_t s = 0; s < piece.sequences(); ++s) longest = std::max(longest, piece.length(s));
    reserve(piece.rows(), longest);
    batch_ = batch, piece_ = piece, out_ = out;
    share_count_ = turn.threads();
    const double mlp = double(spec.inner) * (spec.gated ? 3 : 2);
    const double linear = spec.hidden * (mlp + spec.qkv_width() + spec.q_width());
    // A product of attention is counted as several: it runs on wider numbers than the matrices'.
    const double pair = 2.0 * spec.q_width() * 4;
    cut_shares(piece, linear, pair, share_count_, shares_.data());
    for (size_t i = 0; i < cursors_.size(); ++i) cursors_[i].row = shares_[i % size_t(threads())];
    block_rows_ = std::clamp(piece.rows() / share_count_ / 2 / 16 * 16, 32, kBlockRows);
    turn.run(&Transformer::work, this);
}

void Transformer::work(void* self, int worker, Barrier& barrier) {
    static_cast<Transformer*>(self)->forward(worker, barrier);
}

// The next rows of a step (the embeddings, then each block) for a worker: of its own share, then of the others'.
bool Transformer::take_rows(int32_t step, int worker, Rows& rows) {
    for (int i = 0; i < share_count_; ++i) {
        const int owner = (worker + i) % share_count_;
        const int32_t end = shares_[size_t(owner) + 1];
        std::atomic<int32_t>& next = cursors_[size_t(step) * size_t(threads()) + size_t(owner)].row;
        if (next.load(std::memory_order_relaxed) >= end) continue;
        const int32_t first = next.fetch_add(block_rows_, std::memory_order_relaxed);
        if (first >= end) continue;
        rows = {first, std::min(block_rows_, end - first)};
        return true;
    }
    return false;
}

void Transformer::forward(int worker, Barrier& barrier) {
    const Spec& spec = model_.spec;
    Scratch& scratch = scratch_[size_t(worker)];
    const bool picks = spec.pool == Pool::first || spec.pool == Pool::last;
    Rows rows{};
    while (take_rows(0, worker, rows)) {
        embed(rows.first, rows.count);
        project(0, rows.first, rows.count, scratch);
    }
    barrier.wait();
    for (int32_t layer = 0; layer < spec.layers; ++layer) {
        const bool is_last = layer + 1 == spec.layers;
        if (is_last && picks) break;  // only the rows that leave the body go through its last block
        while (take_rows(layer + 1, worker, rows)) {
            float* x = x_ + rows.first * ld_x_;
            attend(layer, rows.first, rows.count, scratch.context, scratch);
            finish(layer, x, scratch.context, rows.count, scratch);
            if (!is_last) project(layer + 1, rows.first, rows.count, scratch);
            if (is_last && spec.pool == Pool::tokens) answer_rows(x, piece_.base() + rows.first, rows.count, scratch);
        }
        if (!is_last || spec.pool == Pool::mean) barrier.wait();
    }
    if (spec.pool == Pool::tokens) return;
    const int64_t count = piece_.sequences();
    answer_sequences(int32_t(count * worker / share_count_), int32_t(count * (worker + 1) / share_count_), scratch);
}

// Runs a matrix on the rows that are in the scratch; what the job does not say is filled in.
void Transformer::multiply(const Matrix& matrix, int32_t rows, const Scratch& scratch, Linear job) const {
    job.rows = rows;
    job.first = 0;
    job.last = matrix.n;
    ingot::multiply(kernels_, matrix, scratch.operand, job);
}

void Transformer::linear(const Matrix& matrix, const float* x, int64_t ld_x, int32_t rows, Scratch& scratch,
                         Linear job) const {
    scratch.operand.fill(kernels_, matrix, x, ld_x, 0, rows);
    scratch.operand.floats = x, scratch.operand.ld_floats = ld_x;
    multiply(matrix, rows, scratch, job);
}

void Transformer::embed(int32_t row, int32_t rows) {
    const Spec& spec = model_.spec;
    const int32_t hidden = spec.hidden;
    int32_t s = piece_.sequence_of(row), skipped = 0;  // tokens of the sequence before this one that take no place
    for (int32_t r = piece_.start(s); r < row; ++r) skipped += takes_no_place(r);
    for (int32_t r = row; r < row + rows; ++r) {
        if (r == piece_.start(s) + piece_.length(s)) ++s, skipped = 0;
        positions_[r] = r - piece_.start(s);
        const bool is_placed = !takes_no_place(r);
        const int64_t place = spec.position_offset + (is_placed ? positions_[r] - skipped : -1);
        skipped += !is_placed;
        const int64_t id = batch_.ids[piece_.base() + r];
        const int64_t type = batch_.types != nullptr ? batch_.types[piece_.base() + r] : 0;
        embed_token(model_, id, place, type, x_ + r * ld_x_);
    }
    float* x = x_ + row * ld_x_;
    if (spec.embedding_norm) normalize(model_.embedding_norm, x, ld_x_, rows, hidden, x, ld_x_);
}

// Queries, keys and values of a block, from the residual stream.
void Transformer::project(int32_t layer, int32_t row, int32_t rows, Scratch& scratch) {
    const Spec& spec = model_.spec;
    const Block& block = model_.blocks[size_t(layer)];
    const float* input = x_ + row * ld_x_;
    if (spec.norm_first && spec.has_attention_norm(layer)) {
        normalize(block.attention_norm, input, ld_x_, rows, spec.hidden, scratch.normed, ld_x_);
        input = scratch.normed;
    }
    Linear job{};
    job.out = qkv_[layer & 1] + row * ld_qkv_;
    job.ld_out = ld_qkv_;
    linear(block.qkv, input, ld_x_, rows, scratch, job);
    if (spec.position == Position::rotary) {  // queries and keys lie side by side, so they turn as one
        kernels_.rotate(job.out, ld_qkv_, rows, spec.heads + spec.kv_heads, spec.head_dim, spec.rotary_dim,
                        positions_ + row, block.cosine, block.sine);
    }
}

// The rest of a block after attention: output matrix, MLP, residuals, norms. `x` is the residual stream, in place.
void Transformer::finish(int32_t layer, float* x, const float* context, int32_t rows, Scratch& scratch) {
    const Spec& spec = model_.spec;
    const Block& block = model_.blocks[size_t(layer)];
    Linear onto_x{};
    onto_x.plus = onto_x.out = x;
    onto_x.ld_plus = onto_x.ld_out = ld_x_;
    linear(block.o, context, ld_context_, rows, scratch, onto_x);
    float* input = spec.norm_first ? scratch.normed : x;
    normalize(spec.norm_first ? block.mlp_norm : block.attention_norm, x, ld_x_, rows, spec.hidden, input, ld_x_);

    Linear up{};
    up.out = scratch.inner;
    up.ld_out = ld_inner_;
    scratch.operand.fill(kernels_, spec.gated ? block.gate : block.up, input, ld_x_, 0, rows);
    if (spec.gated) {
        Linear gate = up;
        gate.out = scratch.gate;
        gate.activation = spec.activation;
        multiply(block.gate, rows, scratch, gate);
        if (!reads_alike(block.gate, block.up)) scratch.operand.fill(kernels_, block.up, input, ld_x_, 0, rows);
        up.times = scratch.gate;
        up.ld_times = ld_inner_;
    } else {
        up.activation = spec.activation;
    }
    multiply(block.up, rows, scratch, up);
    linear(block.down, scratch.inner, ld_inner_, rows, scratch, onto_x);
    if (!spec.norm_first) normalize(block.mlp_norm, x, ld_x_, rows, spec.hidden, x, ld_x_);
    if (spec.final_norm && layer + 1 == spec.layers) {
        normalize(model_.final_norm, x, ld_x_, rows, spec.hidden, x, ld_x_);
    }
}

}  // namespace ingot
