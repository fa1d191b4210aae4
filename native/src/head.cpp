// What leaves the body: picked rows or means, the dense layers of the head, the length of the answer.
#include <algorithm>
#include <cmath>

#include "transformer.h"

namespace ingot {
namespace {

void to_unit_length(float* x, int32_t n) {
    double squares = 0;
    for (int32_t i = 0; i < n; ++i) squares += double(x[i]) * x[i];
    const float factor = float(1.0 / std::max(std::sqrt(squares), 1e-12));
    for (int32_t i = 0; i < n; ++i) x[i] *= factor;
}

}  // namespace

// Rows `first` and on of the answer from as many rows of the body.
void Transformer::answer_rows(const float* x, int64_t first, int32_t rows, Scratch& scratch) {
    const Spec& spec = model_.spec;
    const int32_t width = spec.width();
    float* answer = out_ + first * width;
    if (spec.pool_norm) {
        normalize(model_.pool_norm, x, ld_x_, rows, spec.hidden, scratch.picked, ld_x_);
        x = scratch.picked;
    }
    const float* input = x;
    int64_t ld_input = ld_x_;
    for (size_t j = 0; j < model_.head.size(); ++j) {
        const bool is_last = j + 1 == model_.head.size();
        float* output = is_last ? answer : scratch.head[j & 1];
        const int64_t ld_output = is_last ? width : ld_head_;
        Linear job{};
        job.activation = spec.head[j].activation;
        job.out = output;
        job.ld_out = ld_output;
        linear(model_.head[j], input, ld_input, rows, scratch, job);
        if (int32_t(j) == spec.head_norm) {
            normalize(model_.head_norm, output, ld_output, rows, spec.head[j].width, output, ld_output);
        }
        input = output;
        ld_input = ld_output;
    }
    if (model_.head.empty()) {
        for (int32_t row = 0; row < rows; ++row) std::copy_n(x + row * ld_x_, width, answer + int64_t(row) * width);
    }
    for (int32_t row = 0; spec.normalize && row < rows; ++row) to_unit_length(answer + int64_t(row) * width, width);
}

// The last block for the rows that the pool picks, one of each sequence: no other row of it is asked for.
void Transformer::last_block_of_picked(int32_t first, int32_t count, Scratch& scratch) {
    const int32_t layer = model_.spec.layers - 1;
    for (int32_t i = 0; i < count; ++i) {
        const int32_t s = first + i, position = pooled_position(piece_.length(s));
        attend_sequence(layer, s, position, 1, scratch.context + i * ld_context_, scratch);
        std::copy_n(x_ + (piece_.start(s) + position) * ld_x_, model_.spec.hidden, scratch.picked + i * ld_x_);
    }
    finish(layer, scratch.picked, scratch.context, count, scratch);
}

void Transformer::mean_of(int32_t s, float* y) const {
    const int32_t hidden = model_.spec.hidden, length = piece_.length(s);
    const float* x = x_ + piece_.start(s) * ld_x_;
    std::copy_n(x, hidden, y);
    for (int32_t row = 1; row < length; ++row) {
        for (int32_t i = 0; i < hidden; ++i) y[i] += x[row * ld_x_ + i];
    }
    for (int32_t i = 0; i < hidden; ++i) y[i] /= float(length);
}

void Transformer::answer_sequences(int32_t first, int32_t last, Scratch& scratch) {
    for (int32_t s = first; s < last; s += kBlockRows) {
        const int32_t count = std::min(kBlockRows, last - s);
        if (model_.spec.pool == Pool::mean) {
            for (int32_t i = 0; i < count; ++i) mean_of(s + i, scratch.picked + i * ld_x_);
        } else {
            last_block_of_picked(s, count, scratch);
        }
        answer_rows(scratch.picked, piece_.first + s, count, scratch);
    }
}

}  // namespace ingot
