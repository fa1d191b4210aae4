// The sequences of a call, cut into pieces that fit the caches and shares that keep every thread as busy.
#pragma once
#include <vector>

#include "spec.h"

namespace ingot {

struct Batch {
    const int32_t* ids;
    const int32_t* types;    // or null
    const int64_t* offsets;  // [sequences + 1]
    int64_t sequences;
};

// Throws Refusal unless every sequence can be run.
void check_batch(const Spec& spec, const Batch& batch, int64_t n_ids);

// Sequences first to last - 1 of a batch, run together.
struct Piece {
    int64_t first, last;
    const int64_t* offsets;  // of the batch

    int64_t base() const { return offsets[first]; }
    int32_t rows() const { return int32_t(offsets[last] - offsets[first]); }
    int32_t sequences() const { return int32_t(last - first); }
    int32_t start(int32_t s) const { return int32_t(offsets[first + s] - base()); }
    int32_t length(int32_t s) const { return int32_t(offsets[first + s + 1] - offsets[first + s]); }
    int32_t sequence_of(int32_t row) const;
};

// The piece that begins at sequence `first`: about `most_rows` rows, at least one sequence. Pieces of a batch come out
// nearly equal, so that no small one is left at the end.
Piece next_piece(const Batch& batch, int64_t first, int64_t most_rows);

// Cuts the rows of a piece in shares of equal work: shares[t] to shares[t + 1] is thread t's, shares has threads + 1
// places. A row costs `linear` and, for every token of its sequence, `pair`.
void cut_shares(const Piece& piece, double linear, double pair, int threads, int32_t* shares);

}  // namespace ingot
