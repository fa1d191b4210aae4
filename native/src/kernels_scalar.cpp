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
            return 0.5f * x * std::erfc(x * -0.70710678f);
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

// Below 2^-100 values count as zeros: 127 / largest must stay finite.
constexpr float smallest = 7.8886091e-31f;

// How values that share a scale become codes. With a value that is not finite the scale is NaN, so that answers are
// NaN and not merely wrong.
struct Step {
    float scale, inverse;
};

Step step_of(const float* x, int32_t n) {
    float largest = 0.0f;
    bool finite = true;
    for (int32_t i = 0; i < n; ++i) {
        largest = std::fmax(largest, std::fabs(x[i]));
        finite = finite && std::isfinite(x[i]);
    }
    if (!finite || largest < smallest) return {finite ? 0.0f : NAN, 0.0f};
    return {largest / 127.0f, 127.0f / largest};
}

int32_t code_of(float x, Step step) {
    return step.inverse == 0.0f ? 0 : static_cast<int32_t>(std::lrintf(x * step.inverse));
}

void quantize_rows(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t k_pad, Rows8 out) {
    for (int32_t r = 0; r < rows; ++r) {
        const float* from = x + r * ld;
        uint8_t* to = out.codes + static_cast<int64_t>(r) * k_pad;
        const Step step = step_of(from, k);
        out.scales[r] = step.scale;
        std::memset(to, 128, static_cast<size_t>(k_pad));
        for (int32_t i = 0; i < k; ++i) to[i] = static_cast<uint8_t>(code_of(from[i], step) + 128);
    }
}

void quantize_groups(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t group, Groups8 out) {
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t from = 0; from < k; from += group) {
            const Step step = step_of(x + r * ld + from, group);
            int32_t sum = 0;
            for (int32_t i = from; i < from + group; ++i) {
                const int32_t code = code_of(x[r * ld + i], step);
                out.codes[static_cast<int64_t>(r) * k + i] = static_cast<int8_t>(code);
                sum += code;
            }
            const int64_t at = static_cast<int64_t>(r) * (k / group) + from / group;
            out.scales[at] = step.scale;
            out.sums[at] = sum;
        }
}

// What follows the product.
template <class Job>
void finish(const Job& job, int64_t r, int32_t c, float product) {
    float y = activate(product + job.weights->bias[c], job.activation);
    if (job.times) y *= job.times[r * job.ld_times + c];
    if (job.plus) y += job.plus[r * job.ld_plus + c];
    job.out[r * job.ld_out + c] = y;
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
                finish(job, r, c, static_cast<float>(sums[c - first]) * scale);
            }
        }
    }
}

float from_half(uint16_t half) {
    const int32_t exponent = half >> 10 & 31, fraction = half & 1023;
    float size = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    if (exponent == 0) size = std::ldexp(static_cast<float>(fraction), -24);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return half >> 15 ? -size : size;
}

// The product of a row with output `c`, which still lacks the output's scale.
float product4(const Linear4& job, int64_t r, int32_t c) {
    const Weights4& w = *job.weights;
    const int64_t groups = w.k / w.group;
    const uint8_t* codes = w.codes + static_cast<int64_t>(c / 16) * w.k * 8 + c % 16 * 4;
    const int8_t* x = job.x.codes + r * w.k;
    float total = 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
        int32_t sum = -8 * job.x.sums[r * groups + g];
        for (int32_t i = 0; i < w.group; i += 8, x += 8, codes += 64)
            for (int32_t t = 0; t < 4; ++t) sum += (codes[t] & 15) * x[t] + (codes[t] >> 4) * x[t + 4];
        const float ratio = from_half(w.ratios[(c / 16 * groups + g) * 16 + c % 16]);
        total = std::fma(static_cast<float>(sum), ratio * job.x.scales[r * groups + g], total);
    }
    return total;
}

void linear4(const Linear4& job) {
    for (int32_t r = 0; r < job.rows; ++r)
        for (int32_t c = job.first; c < job.last; ++c) finish(job, r, c, product4(job, r, c) * job.weights->scales[c]);
}

uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

float nearest_bf16(float x) {
    const uint32_t bits = bits_of(x);
    if (std::isnan(x)) return float_of((bits | 0x400000u) & 0xffff0000u);
    if ((bits & 0x7f800000u) == 0) return float_of(bits & 0x80000000u);
    return float_of((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

void round_rows(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t k_pad, void* cells) {
    auto* to = static_cast<float*>(cells);
    for (int32_t r = 0; r < rows; ++r, x += ld, to += k_pad)
        for (int32_t i = 0; i < k_pad; ++i) to[i] = i < k ? nearest_bf16(x[i]) : 0.0f;
}

void linear16(const Linear16& job) {
    const Weights16& w = *job.weights;
    for (int32_t r = 0; r < job.rows; ++r) {
        const float* x = static_cast<const float*>(job.cells) + static_cast<int64_t>(r) * w.k_pad;
        for (int32_t c = job.first; c < job.last; ++c) {
            const uint16_t* values = w.values + static_cast<int64_t>(c / 16 * 16) * w.k_pad + c % 16 * 2;
            float sums[2] = {0.0f, 0.0f};
            for (int32_t k = 0; k < w.k_pad; k += 2, values += 32)
                for (int32_t t = 0; t < 2; ++t) sums[t] += x[k + t] * float_of(static_cast<uint32_t>(values[t]) << 16);
            finish(job, r, c, sums[0] + sums[1]);
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

template <class Code>
void store_codes(const Cache& cache, const float* x, Step step, Code* to, int32_t apart) {
    for (int32_t d = 0; d < cache.head_dim; ++d)
        to[static_cast<int64_t>(d) * apart] =
            sizeof(Code) == 1 ? static_cast<Code>(code_of(x[d], step)) : static_cast<Code>(x[d]);
}

template <class Code>
void store_token(const Cache& cache, const float* key, const float* value, uint8_t* page, int32_t slot) {
    const Step steps[2] = {step_of(key, cache.head_dim), step_of(value, cache.head_dim)};
    auto* values = reinterpret_cast<Code*>(page + values_offset(cache));
    store_codes(cache, key, steps[0], reinterpret_cast<Code*>(page) + slot, kPage);
    store_codes(cache, value, steps[1], values + static_cast<int64_t>(slot) * cache.head_dim, 1);
    if (sizeof(Code) > 1) return;
    auto* scales = reinterpret_cast<float*>(page + scales_offset(cache));
    scales[slot] = steps[0].scale;
    scales[kPage + slot] = steps[1].scale;
}

void store_page(const Cache& cache, const float* key, const float* value, uint8_t* page, int32_t slot) {
    (cache.bits == 8 ? store_token<int8_t> : store_token<float>)(cache, key, value, page, slot);
}

// Of a page: its codes from `offset` on, and the scale of a slot.
template <class Code>
const Code* codes_of(const uint8_t* page, size_t offset) {
    return reinterpret_cast<const Code*>(page + offset);
}
template <class Code>
float scale_of(const Cache& cache, const uint8_t* page, int32_t slot) {
    return sizeof(Code) == 1 ? codes_of<float>(page, scales_offset(cache))[slot] : 1.0f;
}

template <class Code>
void attend_pages(const PagedAttention& job, int32_t position, const float* q, float* out) {
    const int32_t dim = job.cache.head_dim;
    const int32_t from = job.window > 0 && position > job.window ? position - job.window : 0;
    auto* scores = static_cast<float*>(job.scratch);  // counted from the first key seen
    float largest = -INFINITY, total = 0.0f;
    for (int32_t j = from; j <= position; ++j) {
        const Code* key = codes_of<Code>(job.pages[j / kPage], 0) + j % kPage;
        float dot = 0.0f;
        for (int32_t d = 0; d < dim; ++d) dot += q[d] * static_cast<float>(key[d * kPage]);
        scores[j - from] = dot * scale_of<Code>(job.cache, job.pages[j / kPage], j % kPage) * job.scale;
        largest = std::fmax(largest, scores[j - from]);
    }
    for (int32_t d = 0; d < dim; ++d) out[d] = 0.0f;
    for (int32_t j = from; j <= position; ++j) {
        const uint8_t* page = job.pages[j / kPage];
        const Code* value = codes_of<Code>(page, values_offset(job.cache)) + j % kPage * dim;
        const float weight = std::exp(scores[j - from] - largest);
        const float share = weight * scale_of<Code>(job.cache, page, kPage + j % kPage);
        total += weight;
        for (int32_t d = 0; d < dim; ++d) out[d] += share * static_cast<float>(value[d]);
    }
    for (int32_t d = 0; d < dim; ++d) out[d] /= total;
}

void paged_attention(const PagedAttention& job) {
    const auto attend_row = job.cache.bits == 8 ? attend_pages<int8_t> : attend_pages<float>;
    for (int32_t r = 0; r < job.rows; ++r)
        for (int32_t i = 0; i < job.group; ++i) {
            const int64_t head = static_cast<int64_t>(i) * job.cache.head_dim;
            attend_row(job, job.first_row + r, job.q + r * job.ld_q + head, job.out + r * job.ld_out + head);
        }
}

size_t paged_scratch(const Cache&, int32_t, int32_t, int32_t keys) {
    return (static_cast<size_t>(keys) * sizeof(float) + 63) / 64 * 64;
}

size_t attention_scratch(int32_t keys, int32_t, int32_t) { return (static_cast<size_t>(keys) * 4 + 63) / 64 * 64; }

}  // namespace

extern const Kernels kernels_scalar;
const Kernels kernels_scalar = {
    "scalar", quantize_rows, linear, layer_norm, rms_norm, rotate, attention, attention_scratch,
    quantize_groups, linear4, store_page, paged_attention, paged_scratch,
    round_rows, linear16, sizeof(float)};

}  // namespace ingot
