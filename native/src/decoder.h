// The forward pass of a decoder: sequences gain tokens, whose keys and values go into pages.
//
// The threads share out every part of a block: matrices by columns, so that each weight is read once; attention by
// heads and tiles of rows; norms and the rounding to eight bits by rows. They meet after each part. Rows that are so
// few that meeting would take longer are prepared by every thread for itself. Who is done helps the others.
//
// All that is computed for a token depends on the tokens before it alone: every row of a matrix, of a norm and of
// attention has a fixed order of sums, and keys and values are read from the pages even in the step that makes them.
#pragma once
#include <array>
#include <atomic>

#include "arena.h"
#include "cache.h"
#include "model.h"
#include "pool.h"

namespace ingot {

struct Step {
    const int32_t* ids;
    int64_t n_ids;
    const int64_t* offsets;    // [count + 1]
    const int64_t* sequences;  // [count]
    int64_t count;
    bool every;                // scores for every token, or for the last of each sequence
};

class Decoder {
  public:
    // Throws Refusal unless the model is one that predicts the next token.
    Decoder(Model model, const Kernels& kernels, int threads, int64_t cache_tokens, int32_t cache_bits);

    const Spec& spec() const { return model_.spec; }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return pool_.threads(); }

    // Each takes its turn: calls from several threads wait for one another.
    int64_t open();
    void close(int64_t sequence);
    void trim(int64_t sequence, int64_t length);
    int64_t length(int64_t sequence);
    int64_t free_tokens();
    // Throws Refusal before anything has changed. `out` has a row of scores per token or per sequence.
    void run(const Step& step, float* out, int64_t out_floats);

    static constexpr int32_t kChunkRows = 256;  // rows that go through the blocks together: bounds the memory
    static constexpr int32_t kFewRows = 4;      // of which every thread prepares a copy of its own
    static constexpr int32_t kTile = 32;        // rows of a sequence that a call of the attention kernel has

  private:
    struct Range {
        int32_t first, last;
    };
    // Rows of one sequence in a chunk: where their queries are, where what attention gives goes.
    struct Segment {
        const Sequence* sequence;
        int32_t row, out_row, count, position;
    };
    // The pieces into which attention is cut: heads of segments, tiles of their rows, parts of a head's queries.
    struct Pieces {
        std::vector<Segment> segments;
        std::vector<int32_t> before;  // pieces of earlier segments
        int32_t total = 0, parts = 1;
    };
    // The input of a matrix, as one thread or all of them made it.
    struct Prepared {
        float* normed;  // [rows][ld_normed_]
        Operand operand;
    };
    struct Input {
        Operand operand;
        const float* x;  // what was rounded: the residual of a block whose norms come last
        int64_t ld_x;
    };
    struct Source {
        const float* x;
        int64_t ld_x;
        int32_t width;
        std::array<const NormWeights*, 3> norms;  // one after another; null and absent ones are passed over
        const int32_t* picks;                     // rows of x, or null for all in order
    };
    struct Scratch {
        Prepared few;  // kFewRows rows
        void* attention;
        const uint8_t** pages;  // of one sequence, layer and head
    };
    struct Worker {
        int number;
        Barrier& barrier;
        Scratch& scratch;
    };
    struct alignas(64) Cursor {
        std::atomic<int32_t> taken;
    };
    enum Part { kQkv, kAttend, kO, kGate, kUp, kDown, kParts };

    // decoder.cpp: what is done by the caller, before and between the threads' work
    void check(const Step& step, int64_t out_floats);
    int64_t check_sequence(const Step& step, int64_t s);
    bool is_cut() const { return model_.spec.norm_first && picks_.size() < size_t(rows_); }
    void reserve(int32_t rows, int32_t longest);
    size_t lay_out(Arena* arena, int32_t rows, int32_t longest);
    void plan(const Step& step, int64_t first, int32_t rows);
    void plan_segment(const Sequence& sequence, const Step& step, int64_t s, int64_t first);
    void count_pieces(Pieces& pieces) const;

    // decoder_forward.cpp: what the threads do
    static void work(void* self, int number, Barrier& barrier);
    void forward(Worker& worker);
    Range share(int32_t total, const Worker& worker) const;
    bool take(int32_t stage, const Worker& worker, int32_t total, int32_t unit, Range& range);
    template <class Body>
    void columns(int32_t stage, const Worker& worker, const Matrix& matrix, Body body);
    Input prepare(Worker& worker, const Matrix& matrix, const Source& source, int32_t rows);
    void embed(const Worker& worker);
    bool block(Worker& worker, int32_t layer);
    Input project(Worker& worker, int32_t layer);
    void store(const Worker& worker, int32_t layer);
    void store_head(int32_t layer, int32_t head, Range rows);
    void attend(Worker& worker, int32_t layer, const Pieces& pieces);
    void attend_piece(Worker& worker, int32_t layer, const Segment& segment, int32_t piece, int32_t parts);
    void mlp(Worker& worker, int32_t layer, int32_t rows);
    void answer(Worker& worker);

    Model model_;
    const Kernels& kernels_;
    ThreadPool pool_;
    PagedCache cache_;
    Arena arena_;
    int32_t rows_room_ = 0, longest_room_ = 0;
    int64_t ld_x_, ld_normed_, ld_qkv_, ld_context_, ld_inner_, ld_head_;
    uint64_t steps_ = 0;

    // Of the chunk in progress; guarded by the pool's turn.
    int share_count_ = 1;
    int32_t rows_ = 0;
    float* out_ = nullptr;
    int64_t answered_ = 0;                 // rows of `out` that earlier chunks filled
    float* x_ = nullptr;                   // [rows][ld_x_]: the residual stream
    float* qkv_ = nullptr;                 // [rows][ld_qkv_]
    float* context_ = nullptr;             // [rows][ld_context_]
    float* inner_ = nullptr;               // [rows][ld_inner_]
    float* gate_ = nullptr;                // [rows][ld_inner_], null if not gated
    float* head_[2] = {};                  // [rows][ld_head_]: between the layers of the head
    Prepared shared_{};
    std::vector<Scratch> scratch_;         // [threads]
    std::vector<Cursor> cursors_;          // [stages][threads]
    std::vector<int32_t> ids_, positions_, segment_of_;  // [rows]
    std::vector<int32_t> picks_;           // rows whose scores are asked for
    Pieces all_, picked_;                  // `picked_` is of the last block, if nothing else leaves it
};

}  // namespace ingot
