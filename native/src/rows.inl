// Everything that goes row by row over plain floats: quantization, norms, rotation.

namespace ingot {
namespace {

// See kernels_scalar.cpp for why tiny rows are zeros and rows with NaN or infinity have the scale NaN.
constexpr float smallest_row = 7.8886091e-31f;
constexpr int32_t infinity_bits = 0x7f800000;

// Compared as integers, magnitudes of floats keep their order and NaN is above all of them.
INGOT_INLINE int32_t largest_bits(const float* x, int32_t k) {
    I most[2] = {zero_int(), zero_int()};
    int32_t i = 0;
    for (; i + 2 * lanes <= k; i += 2 * lanes)
        for (int t = 0; t < 2; ++t) most[t] = maximum(most[t], bits(magnitude(load(x + i + t * lanes))));
    for (; i < k; i += lanes) most[0] = maximum(most[0], bits(magnitude(load(x + i, first_lanes(k - i)))));
    return highest(maximum(most[0], most[1]));
}

// How values that share a scale become codes; `inverse` is 0 where all codes are.
struct Step {
    float scale, inverse;
};

INGOT_INLINE Step step_of(const float* x, int32_t k) {
    const int32_t found = largest_bits(x, k);
    float largest;
    __builtin_memcpy(&largest, &found, sizeof largest);
    if (found >= infinity_bits || largest < smallest_row)
        return {found >= infinity_bits ? __builtin_nanf("") : 0.0f, 0.0f};
    return {largest / 127.0f, 127.0f / largest};
}

// Adding 1.5 * 2^23 leaves a float's nearest integer, ties to even, in its lowest bits.
constexpr float to_lowest_bits = 12582912.0f;

void quantize_row(const float* x, int32_t k, int32_t k_pad, float inverse, uint8_t* codes) {
    const F factor = set(inverse), magic = set(to_lowest_bits + 128.0f);  // codes are shifted by 128
    int32_t i = 0;
    for (; i + lanes <= k; i += lanes) store_bytes(codes + i, bits(load(x + i) * factor + magic));
    for (; i < k_pad; i += lanes) {
        const F last = i < k ? load(x + i, first_lanes(k - i)) : set(0.0f);
        store_bytes(codes + i, bits(last * factor + magic));
    }
}

void quantize_rows(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t k_pad, Rows8 out) {
    for (int32_t r = 0; r < rows; ++r) {
        uint8_t* to = out.codes + static_cast<int64_t>(r) * k_pad;
        const Step step = step_of(x + r * ld, k);
        out.scales[r] = step.scale;
        if (step.inverse == 0.0f)
            __builtin_memset(to, 128, static_cast<size_t>(k_pad));
        else
            quantize_row(x + r * ld, k, k_pad, step.inverse, to);
    }
}

// Returns the sum of the codes.
INGOT_INLINE int32_t quantize_group(const float* x, int32_t group, Step step, uint8_t* codes) {
    if (step.inverse == 0.0f) {
        __builtin_memset(codes, 0, static_cast<size_t>(group));
        return 0;
    }
    const F factor = set(step.inverse), magic = set(to_lowest_bits);
    I total = zero_int();
    for (int32_t i = 0; i < group; i += lanes) {
        const I code = bits(load(x + i) * factor + magic);
        store_bytes(codes + i, code);
        total = add(total, subtract(code, bits(magic)));
    }
    return sum(total);
}

void quantize_groups(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t group, Groups8 out) {
    auto* codes = reinterpret_cast<uint8_t*>(out.codes);
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t i = 0; i < k; i += group, codes += group) {
            const Step step = step_of(x + r * ld + i, group);
            *out.scales++ = step.scale;
            *out.sums++ = quantize_group(x + r * ld + i, group, step, codes);
        }
}

// Sum of (x - shift)^power over a row, in four partial sums whose order depends on n alone.
template <int power>
INGOT_INLINE float moment(const float* x, int32_t n, float shift) {
    const F away = set(shift);
    F part[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
    int32_t i = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes)
        for (int t = 0; t < 4; ++t) {
            const F value = load(x + i + t * lanes) - away;
            part[t] = power == 1 ? part[t] + value : fma(value, value, part[t]);
        }
    for (; i < n; i += lanes) {
        const Mask m = first_lanes(n - i);
        const F value = keep(load(x + i, m) - away, m);
        part[0] = power == 1 ? part[0] + value : fma(value, value, part[0]);
    }
    return sum((part[0] + part[1]) + (part[2] + part[3]));
}

void layer_norm(const float* x, int64_t ld_x, int32_t rows, int32_t n, const float* weight, const float* bias,
                float epsilon, float* y, int64_t ld_y) {
    for (int32_t r = 0; r < rows; ++r, x += ld_x, y += ld_y) {
        const float mean = moment<1>(x, n, 0.0f) / static_cast<float>(n);
        const float variance = moment<2>(x, n, mean) / static_cast<float>(n);
        const F factor = set(1.0f / __builtin_sqrtf(variance + epsilon)), away = set(mean);
        for (int32_t i = 0; i < n; i += lanes) {
            const Mask m = first_lanes(n - i);
            const F shift = bias ? load(bias + i, m) : set(0.0f);
            store(y + i, fma((load(x + i, m) - away) * factor, load(weight + i, m), shift), m);
        }
    }
}

void rms_norm(const float* x, int64_t ld_x, int32_t rows, int32_t n, const float* weight, float epsilon, float* y,
              int64_t ld_y) {
    for (int32_t r = 0; r < rows; ++r, x += ld_x, y += ld_y) {
        const F factor = set(1.0f / __builtin_sqrtf(moment<2>(x, n, 0.0f) / static_cast<float>(n) + epsilon));
        for (int32_t i = 0; i < n; i += lanes) {
            const Mask m = first_lanes(n - i);
            store(y + i, load(x + i, m) * factor * load(weight + i, m), m);
        }
    }
}

void rotate(float* x, int64_t ld, int32_t rows, int32_t heads, int32_t head_dim, int32_t rotary,
            const int32_t* positions, const float* cosine, const float* sine) {
    const int32_t half = rotary / 2;
    for (int32_t r = 0; r < rows; ++r) {
        const int64_t angle = static_cast<int64_t>(positions[r]) * half;
        for (int32_t h = 0; h < heads; ++h) {
            float* low = x + r * ld + static_cast<int64_t>(h) * head_dim;
            for (int32_t d = 0; d < half; d += lanes) {
                const Mask m = first_lanes(half - d);
                const F c = load(cosine + angle + d, m), s = load(sine + angle + d, m);
                const F a = load(low + d, m), b = load(low + half + d, m);
                store(low + d, fnma(b, s, a * c), m);
                store(low + half + d, fma(a, s, b * c), m);
            }
        }
    }
}

}  // namespace
}  // namespace ingot
