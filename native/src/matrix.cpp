#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

void dense(const Matrix& matrix, const Operand& operand, const Linear& job) {
    for (int32_t row = 0; row < job.rows; ++row) {
        const float* x = operand.floats + row * operand.ld_floats;
        for (int32_t j = job.first; j < job.last; ++j) {
            const float sum = dot(x, matrix.weight + int64_t(j) * matrix.k, matrix.k);
            job.out[row * job.ld_out + j] = activate(job.activation, sum + matrix.bias[j]);
        }
    }
}

// The job of another form; its input and weights are still to be filled in.
template <class Other>
Other same_job(const Linear& job) {
    Other same{};
    same.rows = job.rows;
    same.first = job.first, same.last = job.last;
    same.activation = job.activation;
    same.times = job.times, same.ld_times = job.ld_times;
    same.plus = job.plus, same.ld_plus = job.ld_plus;
    same.out = job.out, same.ld_out = job.ld_out;
    return same;
}

void four_bits(const Kernels& kernels, const Matrix& matrix, const Operand& operand, const Linear& job) {
    auto same = same_job<Linear4>(job);
    same.x = operand.groups8;
    same.weights = &matrix.four;
    kernels.linear4(same);
}

void in_bf16(const Kernels& kernels, const Matrix& matrix, const Operand& operand, const Linear& job) {
    auto same = same_job<Linear16>(job);
    same.cells = operand.cells;
    same.weights = &matrix.sixteen;
    kernels.linear16(same);
}

// A half without infinity or NaN: they are refused when a model is loaded.
float from_half(uint16_t half) {
    const float magnitude = (half & 0x7c00) == 0
                                ? std::ldexp(float(half & 0x3ff), -24)
                                : std::ldexp(float((half & 0x3ff) | 0x400), ((half >> 10) & 31) - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

void row_of_eight(const Weights8& weights, int64_t i, float* x) {
    const int8_t* codes = weights.codes + i / 16 * 16 * weights.k_pad + i % 16 * 4;
    for (int32_t j = 0; j < weights.k; ++j) x[j] = float(codes[j / 4 * 64 + j % 4]) * weights.scales[i];
}

void row_of_four(const Weights4& weights, int64_t i, float* x) {
    const uint8_t* codes = weights.codes + i / 16 * 8 * weights.k + i % 16 * 4;
    const uint16_t* ratios = weights.ratios + i / 16 * 16 * (weights.k / weights.group) + i % 16;
    for (int32_t first = 0; first < weights.k; first += weights.group, ratios += 16) {
        const float scale = from_half(*ratios) * weights.scales[i];
        for (int32_t j = first; j < first + weights.group; ++j) {
            const int32_t both = codes[j / 8 * 64 + j % 4];
            x[j] = float((j % 8 < 4 ? both & 15 : both >> 4) - 8) * scale;
        }
    }
}

void row_of_sixteen(const Weights16& weights, int64_t i, float* x) {
    const uint16_t* values = weights.values + i / 16 * 16 * weights.k_pad + i % 16 * 2;
    for (int32_t j = 0; j < weights.k; ++j) x[j] = from_bf16(values[j / 2 * 32 + j % 2]);
}

}  // namespace

float from_bf16(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

void Matrix::row(int64_t i, float* x) const {
    switch (form) {
        case Form::eight_bits: return row_of_eight(eight, i, x);
        case Form::four_bits: return row_of_four(four, i, x);
        case Form::bf16: return row_of_sixteen(sixteen, i, x);
        case Form::floats: std::copy_n(weight + i * k, k, x);
    }
}

void Operand::Widths::cover(const Matrix& matrix) {
    if (matrix.form == Form::eight_bits) codes8 = std::max(codes8, matrix.eight.k_pad);
    if (matrix.form == Form::four_bits) {
        codes4 = std::max(codes4, matrix.k);
        groups = std::max(groups, matrix.k / matrix.four.group);
    }
    if (matrix.form == Form::bf16) cells = std::max(cells, matrix.sixteen.k_pad);
}

void Operand::lay_out(Room& room, const Widths& widths, int32_t rows) {
    room.of(rows8.codes, size_t(rows) * size_t(widths.codes8));
    room.of(rows8.scales, size_t(rows));
    room.of(groups8.codes, size_t(rows) * size_t(widths.codes4));
    room.of(groups8.scales, size_t(rows) * size_t(widths.groups));
    room.of(groups8.sums, size_t(rows) * size_t(widths.groups));
    room.of(cells, size_t(rows) * size_t(widths.cells) * sizeof(float));  // the larger of the two kinds
}

void Operand::fill(const Kernels& kernels, const Matrix& matrix, const float* x, int64_t ld_x, int32_t first,
                   int32_t count) const {
    if (matrix.form == Form::eight_bits) {
        const int32_t k_pad = matrix.eight.k_pad;
        kernels.quantize_rows(x, ld_x, count, matrix.k, k_pad,
                              {rows8.codes + int64_t(first) * k_pad, rows8.scales + first});
    } else if (matrix.form == Form::four_bits) {
        const int64_t groups = int64_t(first) * (matrix.k / matrix.four.group);
        kernels.quantize_groups(x, ld_x, count, matrix.k, matrix.four.group,
                                {groups8.codes + int64_t(first) * matrix.k, groups8.scales + groups,
                                 groups8.sums + groups});
    } else if (matrix.form == Form::bf16) {
        const int32_t k_pad = matrix.sixteen.k_pad;
        kernels.round_rows(x, ld_x, count, matrix.k, k_pad, cells + int64_t(first) * k_pad * kernels.cell_bytes);
    }
}

void multiply(const Kernels& kernels, const Matrix& matrix, const Operand& operand, Linear job) {
    if (matrix.form == Form::floats) return dense(matrix, operand, job);
    if (matrix.form == Form::four_bits) return four_bits(kernels, matrix, operand, job);
    if (matrix.form == Form::bf16) return in_bf16(kernels, matrix, operand, job);
    job.codes = operand.rows8.codes;
    job.scales = operand.rows8.scales;
    job.weights = &matrix.eight;
    kernels.linear(job);
}

}  // namespace ingot
