// The reference: plain C++ that any machine can run and a reader can check against the contract. Every other set
// is tested against this one.
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace ingot {
namespace {

float activate(float x, Activation activation) {
    switch (activation) {
        case Activation::gelu:
            return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
        case Activation::gelu_tanh:
            return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
        case Activation::relu:
            return x < 0.0f ? 0.0f : x;
        case Activation::silu:
            return x / (1.0f + std::exp(-x));
        case Activation::tanh:
            return std::tanh(x);
        case Activation::none:
            break;
    }
    return x;
}

// A row with a value that is not finite gets the scale NaN, so that its answers are NaN and not merely wrong.
// Below 2^-100 a row counts as zeros: 127 / largest must stay finite.
constexpr float smallest = 7.8886091e-31f;

void quantize_rows(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t k_pad, Rows8 out) {
    for (int32_t r = 0; r < rows; ++r) {
        const float* from = x + r * ld;
        uint8_t* to = out.codes + static_cast<int64_t>(r) * k_pad;
        float largest = 0.0f;
        bool finite = true;
        for (int32_t i = 0; i < k; ++i) {
            largest = std::fmax(largest, std::fabs(from[i]));
            finite = finite && std::isfinite(from[i]);
        }
        std::memset(to, 128, static_cast<size_t>(k_pad));
        out.scales[r] = finite ? 0.0f : NAN;
        if (!finite || largest < smallest) continue;
        out.scales[r] = largest / 127.0f;
        const float inverse = 127.0f / largest;
        for (int32_t i = 0; i < k; ++i)
            to[i] = static_cast<uint8_t>(std::lrintf(from[i] * inverse) + 128);
    }
}

void panel_sums(const uint8_t* row, const int8_t* panel, int32_t k_pad, int32_t sums[16]) {
    for (int32_t o = 0; o < 16; ++o) sums[o] = 0;
    for (int32_t k = 0; k < k_pad; k += 4, panel += 64)
        for (int32_t o = 0; o < 16; ++o)
            for (int32_t t = 0; t < 4; ++t) sums[o] += (row[k + t] - 128) * panel[o * 4 + t];
}

void linear(const Linear& job) {
    const Weights8& w = *job.weights;
    for (int32_t r = 0; r < job.rows; ++r) {
        const uint8_t* row = job.codes + static_cast<int64_t>(r) * w.k_pad;
        for (int32_t first = job.first; first < job.last; first += 16) {
            int32_t sums[16];
            panel_sums(row, w.codes + static_cast<int64_t>(first) * w.k_pad, w.k_pad, sums);
            for (int32_t c = first; c < first + 16 && c < job.last; ++c) {
                const float scale = job.scales[r] * w.scales[c];
                float y = static_cast<float>(sums[c - first]) * scale + w.bias[c];
                y = activate(y, job.activation);
                if (job.times) y *= job.times[r * job.ld_times + c];
                if (job.plus) y += job.plus[r * job.ld_plus + c];
                job.out[r * job.ld_out + c] = y;
            }
        }
    }
}

void layer_norm(const float* x, int64_t ld_x, int32_t rows, int32_t n, const float* weight, const float* bias,
                float epsilon, float* y, int64_t ld_y) {
    for (int32_t r = 0; r < rows; ++r, x += ld_x, y += ld_y) {
        float sum = 0.0f, squares = 0.0f;
        for (int32_t i = 0; i < n; ++i) sum += x[i];
        const float mean = sum / static_cast<float>(n);
        for (int32_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
        const float factor = 1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon);
        for (int32_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * factor * weight[i] + (bias ? bias[i] : 0.0f);
    }
}

void rms_norm(const float* x, int64_t ld_x, int32_t rows, int32_t n, const float* weight, float epsilon, float* y,
              int64_t ld_y) {
    for (int32_t r = 0; r < rows; ++r, x += ld_x, y += ld_y) {
        float squares = 0.0f;
        for (int32_t i = 0; i < n; ++i) squares += x[i] * x[i];
        const float factor = 1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon);
        for (int32_t i = 0; i < n; ++i) y[i] = x[i] * factor * weight[i];
    }
}

void rotate(float* x, int64_t ld, int32_t rows, int32_t heads, int32_t head_dim, int32_t rotary,
            const int32_t* positions, const float* cosine, const float* sine) {
    const int32_t half = rotary / 2;
    for (int32_t r = 0; r < rows; ++r) {
        const float* c = cosine + static_cast<int64_t>(positions[r]) * half;
        const float* s = sine + static_cast<int64_t>(positions[r]) * half;
        for (int32_t h = 0; h < heads; ++h) {
            float* a = x + r * ld + static_cast<int64_t>(h) * head_dim;
            float* b = a + half;
            for (int32_t d = 0; d < half; ++d) {
                const float low = a[d] * c[d] - b[d] * s[d];
                b[d] = b[d] * c[d] + a[d] * s[d];
                a[d] = low;
            }
        }
    }
}

// One row: scores of the keys it sees, softmax, weighted sum. A row that sees no key is zeros.
void attend(const Attention& job, int32_t row, int32_t from, int32_t to, float* scores) {
    const int32_t position = job.first_row + row;
    const float* q = job.q + row * job.ld_q;
    float* out = job.out + row * job.ld_out;
    float largest = -INFINITY, total = 0.0f;
    for (int32_t j = from; j < to; ++j) {
        float dot = 0.0f;
        for (int32_t d = 0; d < job.head_dim; ++d) dot += q[d] * job.k[j * job.ld_k + d];
        scores[j] = dot * job.scale;
        if (job.relative) scores[j] += job.relative[j - position + job.relative_zero];
        largest = std::fmax(largest, scores[j]);
    }
    for (int32_t d = 0; d < job.head_dim; ++d) out[d] = 0.0f;
    for (int32_t j = from; j < to; ++j) {
        const float weight = std::exp(scores[j] - largest);
        total += weight;
        for (int32_t d = 0; d < job.head_dim; ++d) out[d] += weight * job.v[j * job.ld_v + d];
    }
    for (int32_t d = 0; d < job.head_dim && from < to; ++d) out[d] /= total;
}

void attention(const Attention& job) {
    for (int32_t r = 0; r < job.rows; ++r) {
        const int32_t position = job.first_row + r;
        int32_t from = 0, to = job.keys;
        if (job.causal && position + 1 < to) to = position + 1;
        if (job.window > 0 && position + job.window + 1 < to) to = position + job.window + 1;
        if (job.window > 0 && position - job.window > from) from = position - job.window;
        attend(job, r, from, to, static_cast<float*>(job.scratch));
    }
}

size_t attention_scratch(int32_t keys, int32_t, int32_t) { return (static_cast<size_t>(keys) * 4 + 63) / 64 * 64; }

}  // namespace

extern const Kernels kernels_scalar;
const Kernels kernels_scalar = {"scalar", quantize_rows, linear,    layer_norm,
                                rms_norm, rotate,        attention, attention_scratch};

}  // namespace ingot
