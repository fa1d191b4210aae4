// What leaves the body: picked rows or means, the dense layers of the head, the length of the answer.
#include <algorithm>
#include <cmath>

#include "transformer.h"

namespace ingot {
namespace {

float activate(Activation activation, float x) {
    switch (activation) {
        case Activation::gelu: return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
        case Activation::gelu_tanh:
            return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case Activation::relu: return std::max(x, 0.0f);
        case Activation::silu: return x / (1.0f + std::exp(-x));
        case Activation::tanh: return std::tanh(x);
        case Activation::none: break;
    }
    return x;
}

// Sixteen sums side by side: compilers turn them into vectors without changing any rounding.
float dot(const float* a, const float* b, int32_t n) {
    float sums[16] = {};
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int32_t j = 0; j < 16; ++j) sums[j] += a[i + j] * b[i + j];
    }
    for (; i < n; ++i) sums[i % 16] += a[i] * b[i];
    float sum = 0;
    for (float part : sums) sum += part;
    return sum;
}

void dense(const HeadWeights& layer, const HeadLayer& facts, const float* x, int64_t ld_x, int32_t rows, float* y,
           int64_t ld_y) {
    for (int32_t row = 0; row < rows; ++row) {
        for (int32_t j = 0; j < facts.width; ++j) {
            const float sum = dot(x + row * ld_x, layer.weight + int64_t(j) * layer.inputs, layer.inputs);
            y[row * ld_y + j] = activate(facts.activation, sum + layer.bias[j]);
        }
    }
}

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
        if (model_.head[j].is_float) {
            dense(model_.head[j], spec.head[j], input, ld_input, rows, output, ld_output);
        } else {
            Linear job{};
            job.activation = spec.head[j].activation;
            job.out = output;
            job.ld_out = ld_output;
            linear(model_.head[j].packed, input, ld_input, rows, scratch, job);
        }
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
