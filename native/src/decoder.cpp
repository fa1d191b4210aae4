#include "decoder.h"

#include <algorithm>

#include "batch.h"

namespace ingot {
namespace {

using std::to_string;

void require(bool holds, const char* what) {
    if (!holds) {
        throw Refusal(INGOT_BAD_SPEC, std::string("A decoder must ") + what +
                                          "; this transformer does not. Run it with an encoder.");
    }
}

Model causal(Model model) {
    const Spec& spec = model.spec;
    require(spec.causal, "be causal, so that a token sees earlier tokens only");
    require(!spec.head.empty() && spec.pool == Pool::tokens, "give scores of the vocabulary for every token");
    require(spec.position != Position::relative, "have absolute, rotary or no positions");
    require(spec.padding_id < 0, "give every token a place (padding_id -1)");
    require(!spec.normalize, "give scores as they are, not divided by their length");
    require(spec.head_norm + 1 < int32_t(spec.head.size()), "have no norm after the scores");
    return model;
}

int32_t rows_worth_room(int64_t rows) {
    for (int32_t room : {8, 64}) {
        if (rows <= room) return room;
    }
    return Decoder::kChunkRows;
}

int32_t keys_worth_room(int32_t longest) {
    int32_t room = 256;
    while (room < longest) room *= 2;
    return room;
}

}  // namespace

Decoder::Decoder(Model model, const Kernels& kernels, int threads, int64_t cache_tokens, int32_t cache_bits)
    : model_(causal(std::move(model))), kernels_(kernels), pool_(threads),
      cache_(model_.spec, cache_tokens, cache_bits), scratch_(size_t(pool_.threads())),
      cursors_((size_t(model_.spec.layers) * kParts + model_.spec.head.size()) * size_t(pool_.threads())) {
    const Spec& spec = model_.spec;
    int32_t widest = 0;
    for (size_t j = 0; j + 1 < spec.head.size(); ++j) widest = std::max(widest, spec.head[j].width);
    ld_x_ = stride(spec.hidden);
    ld_normed_ = stride(std::max(spec.hidden, widest));
    ld_qkv_ = stride(spec.qkv_width());
    ld_context_ = stride(spec.q_width());
    ld_inner_ = stride(spec.inner);
    ld_head_ = widest > 0 ? stride(widest) : 0;
    for (std::vector<int32_t>* list : {&ids_, &positions_, &segment_of_, &picks_, &all_.before, &picked_.before}) {
        list->reserve(kChunkRows);
    }
    for (Pieces* pieces : {&all_, &picked_}) pieces->segments.reserve(kChunkRows);
}

int64_t Decoder::open() {
    const ThreadPool::Turn turn(pool_);
    return cache_.open();
}

void Decoder::close(int64_t sequence) {
    const ThreadPool::Turn turn(pool_);
    cache_.close(sequence);
}

void Decoder::trim(int64_t sequence, int64_t length) {
    const ThreadPool::Turn turn(pool_);
    cache_.trim(sequence, length);
}

int64_t Decoder::length(int64_t sequence) {
    const ThreadPool::Turn turn(pool_);
    return cache_.at(sequence).length;
}

int64_t Decoder::free_tokens() {
    const ThreadPool::Turn turn(pool_);
    return cache_.free_tokens();
}

// Refuses sequence s of a step, or tells how many blocks it needs beyond those it has.
int64_t Decoder::check_sequence(const Step& step, int64_t s) {
    const int64_t id = step.sequences[s], count = step.offsets[s + 1] - step.offsets[s];
    Sequence& sequence = cache_.at(id);
    if (sequence.step == steps_) {
        throw Refusal(INGOT_BAD_INPUT, "A sequence must be in a step once; sequence " + to_string(id) +
                                           " is there twice. Join its tokens.");
    }
    sequence.step = steps_;
    if (sequence.length + count > model_.spec.positions) {
        throw Refusal(INGOT_BAD_INPUT, "Sequence " + to_string(id) + " must have at most " +
                                           to_string(model_.spec.positions) + " tokens; it has " +
                                           to_string(sequence.length) + " and would gain " + to_string(count) +
                                           ". Trim it, or end it.");
    }
    return std::max<int64_t>(0, PagedCache::missing(sequence, sequence.length + count));
}

void Decoder::check(const Step& step, int64_t out_floats) {
    const Spec& spec = model_.spec;
    check_batch(spec, {step.ids, nullptr, step.offsets, step.count}, step.n_ids);
    const int64_t needed = (step.every ? step.n_ids : step.count) * int64_t(spec.width());
    if (out_floats < needed) {
        throw Refusal(INGOT_BAD_INPUT,
                      "out must hold " + to_string(needed) + " floats; got room for " + to_string(out_floats) + ".");
    }
    ++steps_;
    int64_t missing = 0;
    for (int64_t s = 0; s < step.count; ++s) missing += check_sequence(step, s);
    if (missing * kPage > cache_.free_tokens()) {
        throw Refusal(INGOT_CACHE_FULL, "The cache must have " + to_string(missing * kPage) +
                                            " free tokens for this step; it has " + to_string(cache_.free_tokens()) +
                                            ". Close or trim sequences, or make it larger (cache_tokens).");
    }
}

size_t Decoder::lay_out(Arena* arena, int32_t rows, int32_t longest) {
    const Spec& spec = model_.spec;
    const Operand::Widths widths = model_.widest_operand();
    const size_t attention = kernels_.paged_scratch(cache_.form(), kTile, spec.heads / spec.kv_heads, longest);
    Room room(arena);
    const auto prepared = [&](Prepared& to, int32_t count) {
        room.of(to.normed, size_t(count) * size_t(ld_normed_));
        to.operand.lay_out(room, widths, count);
    };
    room.of(x_, size_t(rows) * size_t(ld_x_));
    room.of(qkv_, size_t(rows) * size_t(ld_qkv_));
    room.of(context_, size_t(rows) * size_t(ld_context_));
    room.of(inner_, size_t(rows) * size_t(ld_inner_));
    room.of(gate_, spec.gated ? size_t(rows) * size_t(ld_inner_) : 0);
    for (float*& between : head_) room.of(between, size_t(rows) * size_t(ld_head_));
    prepared(shared_, rows);
    for (Scratch& scratch : scratch_) {
        prepared(scratch.few, kFewRows);
        room.of(scratch.pages, size_t(longest / kPage + 1));
        uint8_t* bytes = nullptr;
        room.of(bytes, attention);
        scratch.attention = bytes;
    }
    return room.size_bytes();
}

// Room for chunks of `rows` rows and sequences of `longest` tokens; nothing to do when it is there.
void Decoder::reserve(int32_t rows, int32_t longest) {
    if (rows <= rows_room_ && longest <= longest_room_) return;
    rows = std::max(rows, rows_room_), longest = std::max(longest, longest_room_);
    rows_room_ = longest_room_ = 0;
    arena_.reserve(lay_out(nullptr, rows, longest));
    lay_out(&arena_, rows, longest);
    rows_room_ = rows, longest_room_ = longest;
}

void Decoder::run(const Step& step, float* out, int64_t out_floats) {
    ThreadPool::Turn turn(pool_);
    check(step, out_floats);
    int32_t longest = 0;
    for (int64_t s = 0; s < step.count; ++s) {
        const int64_t count = step.offsets[s + 1] - step.offsets[s];
        longest = std::max(longest, cache_.at(step.sequences[s]).length + int32_t(count));
    }
    reserve(rows_worth_room(step.n_ids), keys_worth_room(longest));
    const auto each = [&](auto body) {  // sequence and its length after the step
        for (int64_t s = 0; s < step.count; ++s) {
            Sequence& sequence = cache_.at(step.sequences[s]);
            body(sequence, sequence.length + int32_t(step.offsets[s + 1] - step.offsets[s]));
        }
    };
    each([&](Sequence& sequence, int32_t length) { cache_.grow(sequence, length); });
    share_count_ = turn.threads();
    out_ = out, answered_ = 0;
    for (int64_t first = 0; first < step.n_ids; first += kChunkRows) {
        plan(step, first, int32_t(std::min<int64_t>(kChunkRows, step.n_ids - first)));
        turn.run(&Decoder::work, this);
        answered_ += int64_t(picks_.size());
    }
    each([](Sequence& sequence, int32_t length) { sequence.length = length; });
}

void Decoder::plan(const Step& step, int64_t first, int32_t rows) {
    for (std::vector<int32_t>* list : {&ids_, &positions_, &segment_of_, &picks_}) list->clear();
    all_.segments.clear(), picked_.segments.clear();
    rows_ = rows;
    int64_t s = std::upper_bound(step.offsets, step.offsets + step.count + 1, first) - step.offsets - 1;
    for (; s < step.count && step.offsets[s] < first + rows; ++s) {
        plan_segment(cache_.at(step.sequences[s]), step, s, first);
    }
    count_pieces(all_);
    if (is_cut()) count_pieces(picked_);
    for (Cursor& cursor : cursors_) cursor.taken.store(0, std::memory_order_relaxed);
}

// The rows of sequence s that lie in the chunk of rows_ rows from `first`.
void Decoder::plan_segment(const Sequence& sequence, const Step& step, int64_t s, int64_t first) {
    const int64_t from = std::max(first, step.offsets[s]), to = std::min(first + rows_, step.offsets[s + 1]);
    const int32_t row = int32_t(from - first), count = int32_t(to - from);
    const int32_t position = sequence.length + int32_t(from - step.offsets[s]);
    for (int32_t i = 0; i < count; ++i) {
        ids_.push_back(step.ids[from + i]);
        positions_.push_back(position + i);
        segment_of_.push_back(int32_t(all_.segments.size()));
        if (step.every) picks_.push_back(row + i);
    }
    all_.segments.push_back({&sequence, row, row, count, position});
    if (!step.every && to == step.offsets[s + 1]) {
        picked_.segments.push_back({&sequence, row + count - 1, int32_t(picks_.size()), 1, position + count - 1});
        picks_.push_back(row + count - 1);
    }
}

// Where heads are fewer than threads, the queries of a head are shared out too.
void Decoder::count_pieces(Pieces& pieces) const {
    const Spec& spec = model_.spec;
    const int32_t group = spec.heads / spec.kv_heads;
    int32_t whole = 0;
    for (const Segment& segment : pieces.segments) whole += spec.kv_heads * ((segment.count + kTile - 1) / kTile);
    pieces.parts = 1;
    while (pieces.parts < group && (group % pieces.parts != 0 || whole * pieces.parts < 2 * share_count_)) {
        ++pieces.parts;
    }
    pieces.before.clear();
    pieces.total = 0;
    for (const Segment& segment : pieces.segments) {
        pieces.before.push_back(pieces.total);
        pieces.total += spec.kv_heads * ((segment.count + kTile - 1) / kTile) * pieces.parts;
    }
}

}  // namespace ingot
