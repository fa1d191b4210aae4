// The forward pass of an encoder.
//
// Rows (tokens of all sequences, packed without padding) are shared among the threads. A thread carries some rows
// through a whole block and on through the next block's queries, keys and values; then all meet once, because
// attention reads the keys and values of a sequence's other rows. Queries, keys and values have two buffers: one is
// read while the next block's are written. Who is done with its share helps the others: on a busy machine one thread
// may stand still for longer than a call takes.
#pragma once
#include <atomic>

#include "arena.h"
#include "batch.h"
#include "model.h"
#include "pool.h"

namespace ingot {

// What one thread computes in. Rows of codes have the kernels' padding, rows of floats a stride of their own.
struct Scratch {
    Operand operand;   // the input of a matrix
    float* context;    // [kBlockRows][q_width]: what attention gives
    float* normed;     // [kBlockRows][hidden]: input of a half of a pre-norm block
    float* inner;      // [kBlockRows][inner]
    float* gate;       // [kBlockRows][inner], null if not gated
    float* picked;     // [kBlockRows][hidden]: rows that leave the body, then normed where the pool has a norm
    float* head[2];    // [kBlockRows][widest layer of the head but the last]
    void* attention;
};

class Transformer {
  public:
    Transformer(Model model, const Kernels& kernels, int threads);

    const Spec& spec() const { return model_.spec; }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return pool_.threads(); }

    // Runs a checked batch. `out` has a row per token or per sequence.
    void run(const Batch& batch, float* out);

    static constexpr int32_t kBlockRows = 64;    // rows that go through a block together: their inputs fit the caches
    static constexpr int32_t kTile = 32;         // causal and windowed rows that share a range of keys
    static constexpr int64_t kPieceRows = 256;   // rows of a piece per thread: keys and values stay in its caches

  private:
    struct Keys {
        int32_t first, last;
    };
    struct Rows {
        int32_t first, count;
    };
    struct alignas(64) Cursor {
        std::atomic<int32_t> row;  // the next that nobody has taken
    };

    void reserve(int32_t rows, int32_t longest);
    void run_piece(const Batch& batch, const Piece& piece, ThreadPool::Turn& turn, float* out);
    static void work(void* self, int worker, Barrier& barrier);
    void forward(int worker, Barrier& barrier);
    bool take_rows(int32_t step, int worker, Rows& rows);

    // transformer.cpp
    void embed(int32_t row, int32_t rows);
    bool takes_no_place(int32_t row) const { return batch_.ids[piece_.base() + row] == model_.spec.padding_id; }
    void project(int32_t layer, int32_t row, int32_t rows, Scratch& scratch);
    void finish(int32_t layer, float* x, const float* context, int32_t rows, Scratch& scratch);
    void normalize(const NormWeights& norm, const float* x, int64_t ld_x, int32_t rows, int32_t n, float* y,
                   int64_t ld_y) const {
        ingot::normalize(kernels_, model_.spec, norm, x, ld_x, rows, n, y, ld_y);
    }
    void linear(const Matrix& matrix, const float* x, int64_t ld_x, int32_t rows, Scratch& scratch, Linear job) const;
    void multiply(const Matrix& matrix, int32_t rows, const Scratch& scratch, Linear job) const;

    // attend.cpp
    Keys keys_of(int32_t layer, int32_t position, int32_t length) const;
    void attend(int32_t layer, int32_t row, int32_t rows, float* context, Scratch& scratch);
    void attend_sequence(int32_t layer, int32_t s, int32_t position, int32_t rows, float* context, Scratch& scratch);

    // head.cpp
    int32_t pooled_position(int32_t length) const { return model_.spec.pool == Pool::first ? 0 : length - 1; }
    void last_block_of_picked(int32_t first, int32_t count, Scratch& scratch);
    void answer_sequences(int32_t first, int32_t last, Scratch& scratch);
    void answer_rows(const float* x, int64_t first, int32_t rows, Scratch& scratch);
    void mean_of(int32_t s, float* y) const;

    Model model_;
    const Kernels& kernels_;
    ThreadPool pool_;
    Arena arena_;
    int32_t rows_room_ = 0, longest_room_ = 0;
    int64_t ld_x_, ld_qkv_, ld_context_, ld_inner_, ld_head_;

    // Of the call in progress; guarded by the pool's turn.
    Batch batch_{};
    Piece piece_{};
    float* out_ = nullptr;
    float* x_ = nullptr;        // [rows][hidden]: the residual stream
    float* qkv_[2] = {};        // [rows][q, k, v]
    int32_t* positions_ = nullptr;
    std::vector<Scratch> scratch_;  // [threads]
    std::vector<int32_t> shares_;   // [threads + 1]
    std::vector<Cursor> cursors_;   // [layers + 1][threads]: of the embeddings, then of each block
    int share_count_ = 1;
    int32_t block_rows_ = kBlockRows;
};

}  // namespace ingot
