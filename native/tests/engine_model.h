// A transformer with random packed weights, made through the C interface.
#pragma once
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ingot_native.h"

struct RandomModel {
    struct Shape {
        int32_t layers = 2, hidden = 48, heads = 3, kv_heads = 3, head_dim = 16, inner = 96, vocab = 50, positions = 140;
        int32_t position = 0, norm = 0, norm_first = 0, gated = 0, causal = 0, window = 0, pool = 1;
        int32_t types = 2, normalize = 1, embedding_norm = 1, offset = 0;
        int32_t language = 0, tied = 0;  // the last layer of the head gives scores; it is the token table, too
        int32_t bits = 8, group = 32;    // of the body's matrices and the scores'; 16 is bf16, of the tokens too
        std::string eight = "none";      // a matrix of every block that has eight bits all the same
        int32_t poison = -1;             // a token that makes its row of the residual stream infinite
        std::vector<int32_t> head;       // widths
    };

    explicit RandomModel(const Shape& shape_, unsigned seed = 1) : shape(shape_), random(seed) {
        spec.struct_size = sizeof spec;
        spec.layers = shape.layers, spec.hidden = shape.hidden, spec.heads = shape.heads;
        spec.kv_heads = shape.kv_heads, spec.head_dim = shape.head_dim, spec.inner = shape.inner;
        spec.vocab = shape.vocab, spec.positions = shape.positions, spec.token_types = shape.types;
        spec.position = shape.position, spec.norm = shape.norm, spec.norm_first = shape.norm_first;
        spec.first_attention_norm = 1, spec.embedding_norm = shape.embedding_norm;
        spec.final_norm = shape.norm_first, spec.position_offset = shape.offset;
        spec.activation = 1, spec.gated = shape.gated, spec.causal = shape.causal;
        spec.rotary_dim = shape.position == 1 ? shape.head_dim / 2 * 2 : 0;
        spec.padding_id = -1, spec.pool = shape.pool, spec.normalize = shape.normalize;
        spec.head_norm = shape.head.size() > size_t(shape.language) ? 0 : -1;
        spec.n_head = int32_t(shape.head.size());
        head_activations.assign(shape.head.size(), 5);
        if (shape.language) head_activations.back() = 0;
        spec.head_activations = head_activations.data(), spec.head_widths = shape.head.data();
        bases.assign(size_t(shape.layers), 1000.0), windows.assign(size_t(shape.layers), shape.window);
        spec.rotary_bases = shape.position == 1 ? bases.data() : nullptr, spec.windows = windows.data();
        spec.epsilon = 1e-6;
        fill();
    }

    ingot_config config(int32_t threads, const char* isa = nullptr) const {
        return {sizeof(ingot_config), threads, isa, &spec, tensors.data(), tensors.size()};
    }

    Shape shape;
    ingot_spec spec{};
    std::vector<ingot_tensor> tensors;

  private:
    struct Free {
        void operator()(void* block) const { std::free(block); }
    };

    template <class T>
    T* add(const std::string& name, size_t count) {
        void* block = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
        blocks.emplace_back(block);
        names.push_back(name);
        tensors.push_back({names.back().c_str(), block, count * sizeof(T)});
        return static_cast<T*>(block);
    }

    void floats(const std::string& name, size_t count, float size, float middle = 0) {
        std::uniform_real_distribution<float> value(middle - size, middle + size);
        float* values = add<float>(name, count);
        for (size_t i = 0; i < count; ++i) values[i] = value(random);
    }

    void norm(const std::string& name, int32_t n) {
        floats(name + ".weight", size_t(n), 0.3f, 1.0f);
        if (shape.norm == 0) floats(name + ".bias", size_t(n), 0.1f);
    }

    void matrix4(const std::string& name, int32_t n, int32_t k) {
        const size_t n_pad = size_t(n + 15) / 16 * 16;
        uint8_t* codes = add<uint8_t>(name + ".codes4", n_pad * size_t(k) / 2);
        for (size_t i = 0; i < n_pad * size_t(k) / 2; ++i) codes[i] = uint8_t(random());
        uint16_t* ratios = add<uint16_t>(name + ".ratios", n_pad * size_t(k / shape.group));
        for (size_t i = 0; i < n_pad * size_t(k / shape.group); ++i) ratios[i] = uint16_t(0x3800 + random() % 0x401);
        const float keeps_size = 1.0f / (3.5f * std::sqrt(float(k)));  // of ratios 0.5 to 1, codes -8 to 7
        floats(name + ".scales", n_pad, 0.3f * keeps_size, keeps_size);
        floats(name + ".bias", n_pad, 0.1f);
    }

    // The bf16 at or below a random float.
    uint16_t bf16(float size) {
        const float x = std::uniform_real_distribution<float>(-size, size)(random);
        uint16_t halves[2];
        std::memcpy(halves, &x, sizeof x);
        return halves[1];
    }

    void matrix16(const std::string& name, int32_t n, int32_t k) {
        const int32_t n_pad = (n + 15) / 16 * 16, k_pad = (k + 31) / 32 * 32;
        uint16_t* values = add<uint16_t>(name + ".bf16", size_t(n_pad) * size_t(k_pad));
        std::memset(values, 0, size_t(n_pad) * size_t(k_pad) * sizeof *values);
        for (int32_t i = 0; i < n; ++i)
            for (int32_t j = 0; j < k; ++j)
                values[int64_t(i / 16 * 16) * k_pad + j / 2 * 32 + i % 16 * 2 + j % 2] = bf16(1.7f / std::sqrt(float(k)));
        floats(name + ".bias", size_t(n_pad), 0.1f);
    }

    void matrix(const std::string& name, int32_t n, int32_t k) {
        const bool is_eight = name.substr(name.rfind('.') + 1) == shape.eight;
        if (shape.bits == 16 && !is_eight) return matrix16(name, n, k);
        if (shape.bits == 4 && k % shape.group == 0 && !is_eight) return matrix4(name, n, k);
        const int32_t n_pad = (n + 15) / 16 * 16, k_pad = (k + 63) / 64 * 64;
        std::uniform_int_distribution<int> code(-127, 127);
        int8_t* codes = add<int8_t>(name + ".codes", size_t(n_pad) * size_t(k_pad));
        std::memset(codes, 0, size_t(n_pad) * size_t(k_pad));
        int32_t* sums = add<int32_t>(name + ".sums", size_t(n_pad));
        std::memset(sums, 0, size_t(n_pad) * sizeof(int32_t));
        for (int32_t i = 0; i < n; ++i) {
            for (int32_t j = 0; j < k; ++j) {
                const int value = code(random);
                const int64_t tile = int64_t(i / 16) * (k_pad / 4) + j / 4;
                codes[(tile * 16 + i % 16) * 4 + j % 4] = int8_t(value);
                sums[i] += value;
            }
        }
        const float keeps_size = 1.0f / (73.0f * std::sqrt(float(k)));  // 73: deviation of the codes
        floats(name + ".scales", size_t(n_pad), 0.3f * keeps_size, keeps_size);
        floats(name + ".bias", size_t(n_pad), 0.1f);
    }

    void fill() {
        const int32_t hidden = shape.hidden, q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
        if (!shape.tied) tokens();
        const size_t places = size_t(shape.offset + shape.positions);
        if (shape.position == 0) floats("embed.positions", places * size_t(hidden), 0.3f);
        if (shape.position == 2) floats("relative", size_t(shape.heads) * size_t(2 * shape.positions - 1), 1.0f);
        if (shape.types > 0) floats("embed.types", size_t(shape.types) * size_t(hidden), 0.3f);
        if (shape.embedding_norm) norm("embed.norm", hidden);
        for (int32_t i = 0; i < shape.layers; ++i) {
            const std::string layer = "layers." + std::to_string(i) + ".";
            norm(layer + "attention_norm", hidden);
            norm(layer + "mlp_norm", hidden);
            matrix(layer + "qkv", q + 2 * kv, hidden);
            matrix(layer + "o", hidden, q);
            matrix(layer + "up", shape.inner, hidden);
            if (shape.gated) matrix(layer + "gate", shape.inner, hidden);
            matrix(layer + "down", hidden, shape.inner);
        }
        if (shape.norm_first) norm("final_norm", hidden);
        int32_t inputs = hidden;
        for (size_t j = 0; j < shape.head.size(); ++j) {
            const std::string name = "head." + std::to_string(j);
            if (j % 2 == 0 || (shape.language && j + 1 == shape.head.size())) {
                matrix(name, shape.head[j], inputs);
            } else {
                floats(name + ".weight", size_t(shape.head[j]) * size_t(inputs), 0.1f);
                floats(name + ".bias", size_t(shape.head[j]), 0.1f);
            }
            inputs = shape.head[j];
        }
        if (spec.head_norm == 0) norm("head.norm", shape.head[0]);
    }

    void tokens() {
        const int64_t count = int64_t(shape.vocab) * shape.hidden;
        if (shape.bits == 16) {
            uint16_t* values = add<uint16_t>("embed.tokens.bf16", size_t(count));
            for (int64_t i = 0; i < count; ++i) values[i] = bf16(1.0f);
            return;
        }
        int8_t* codes = add<int8_t>("embed.tokens.codes", size_t(count));
        for (int64_t i = 0; i < count; ++i) codes[i] = int8_t(int(random() % 255) - 127);
        floats("embed.tokens.scales", size_t(shape.vocab), 0.002f, 0.01f);
        if (shape.poison >= 0) {
            float* scales = static_cast<float*>(const_cast<void*>(tensors.back().data));
            scales[shape.poison] = 3e38f;
        }
    }

    std::mt19937 random;
    std::vector<int32_t> head_activations, windows;
    std::vector<double> bases;
    std::deque<std::string> names;
    std::vector<std::unique_ptr<void, Free>> blocks;
};

// Packed sequences with random ids.
struct RandomBatch {
    RandomBatch(const std::vector<int32_t>& lengths, int32_t vocab, unsigned seed = 7) {
        std::mt19937 random(seed);
        offsets.push_back(0);
        for (int32_t length : lengths) {
            for (int32_t i = 0; i < length; ++i) {
                ids.push_back(int32_t(random() % unsigned(vocab)));
                types.push_back(int32_t(random() % 2));
            }
            offsets.push_back(int64_t(ids.size()));
        }
    }

    int64_t tokens() const { return int64_t(ids.size()); }
    int64_t sequences() const { return int64_t(offsets.size()) - 1; }

    std::vector<int32_t> ids, types;
    std::vector<int64_t> offsets;
};
