#include "batch.h"

#include <algorithm>

namespace ingot {
namespace {

void refuse(const std::string& text) { throw Refusal(INGOT_BAD_INPUT, text); }

void check_offsets(const Spec& spec, const Batch& batch, int64_t n_ids) {
    if (batch.offsets[0] != 0) refuse("offsets must begin with 0; got " + std::to_string(batch.offsets[0]) + ".");
    for (int64_t s = 0; s < batch.sequences; ++s) {
        const int64_t from = batch.offsets[s], to = batch.offsets[s + 1];
        // Neither sum nor difference of hostile numbers is taken before both are known to be small.
        if (to < from || to > n_ids) {
            refuse("offsets must ascend and end at the number of ids; got " + std::to_string(to) + " after " +
                   std::to_string(from) + " for " + std::to_string(n_ids) + " ids.");
        }
        if (to == from) refuse("Sequence " + std::to_string(s) + " must have at least one token; it is empty.");
        if (to - from > spec.positions) {
            refuse("Sequence " + std::to_string(s) + " must have at most " + std::to_string(spec.positions) +
                   " tokens; got " + std::to_string(to - from) + ". Cut it before.");
        }
    }
    if (batch.offsets[batch.sequences] != n_ids) {
        refuse("offsets must end at the number of ids, " + std::to_string(n_ids) + "; got " +
               std::to_string(batch.offsets[batch.sequences]) + ".");
    }
}

void check_range(const char* name, const int32_t* values, int64_t count, int32_t end) {
    for (int64_t i = 0; i < count; ++i) {
        if (values[i] < 0 || values[i] >= end) {
            refuse(std::string(name) + " must be between 0 and " + std::to_string(end - 1) + "; got " +
                   std::to_string(values[i]) + " at " + std::to_string(i) + ".");
        }
    }
}

}  // namespace

void check_batch(const Spec& spec, const Batch& batch, int64_t n_ids) {
    if (batch.sequences < 0 || n_ids < 0) refuse("The numbers of sequences and of ids must not be negative.");
    check_offsets(spec, batch, n_ids);
    check_range("Token ids", batch.ids, n_ids, spec.vocab);
    if (batch.types != nullptr) check_range("Token types", batch.types, n_ids, std::max(1, spec.token_types));
}

int32_t Piece::sequence_of(int32_t row) const {
    const int64_t* end = std::upper_bound(offsets + first, offsets + last, base() + row);
    return int32_t(end - (offsets + first)) - 1;
}

Piece next_piece(const Batch& batch, int64_t first, int64_t most_rows) {
    const int64_t from = batch.offsets[first], left = batch.offsets[batch.sequences] - from;
    const int64_t pieces = (left + most_rows - 1) / most_rows;
    const int64_t goal = from + (left + pieces - 1) / pieces;
    int64_t last = first + 1;
    while (last < batch.sequences && batch.offsets[last + 1] <= std::max(goal, from + most_rows / 2)) ++last;
    return {first, last, batch.offsets};
}

void cut_shares(const Piece& piece, double linear, double pair, int threads, int32_t* shares) {
    double total = 0;
    for (int32_t s = 0; s < piece.sequences(); ++s) {
        total += piece.length(s) * (linear + pair * piece.length(s));
    }
    // Kernels work on sixteen rows at once: cutting elsewhere would cost both neighbours a part of a tile.
    const int32_t grain = piece.rows() >= 32 * threads ? 16 : piece.rows() >= 8 * threads ? 4 : 1;
    shares[0] = 0;
    double before = 0;
    int thread = 1;
    for (int32_t s = 0; s < piece.sequences() && thread < threads; ++s) {
        const double row = linear + pair * piece.length(s), work = row * piece.length(s);
        while (thread < threads && before + work >= total * thread / threads) {
            const double rows = (total * thread / threads - before) / row;
            const int32_t cut = (piece.start(s) + int32_t(rows) + grain / 2) / grain * grain;
            shares[thread] = std::clamp(cut, shares[thread - 1], piece.rows());
            ++thread;
        }
        before += work;
    }
    for (; thread <= threads; ++thread) shares[thread] = piece.rows();
    shares[threads] = piece.rows();
}

}  // namespace ingot
