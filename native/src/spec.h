// What a transformer is made of: the C++ twin of ingot_native/spec.py, with every size checked.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "ingot_native.h"
#include "kernels.h"

namespace ingot {

enum class Position : int32_t { absolute = 0, rotary = 1, relative = 2, none = 3 };
enum class Norm : int32_t { layer = 0, rms = 1 };
enum class Pool : int32_t { tokens = 0, mean = 1, first = 2, last = 3 };

// What a caller did wrong, in words. Thrown inside the library only; api.cpp turns it into a code.
struct Refusal : std::runtime_error {
    Refusal(int code_, const std::string& text) : std::runtime_error(text), code(code_) {}
    int code;
};

struct HeadLayer {
    Activation activation;
    int32_t width;
};

struct Spec {
    int32_t layers, hidden, heads, kv_heads, head_dim, inner, vocab, positions, token_types;
    Position position;
    int32_t position_offset, padding_id;
    Norm norm;
    bool norm_first, first_attention_norm, embedding_norm, final_norm;
    Activation activation;
    bool gated, causal;
    float epsilon, attention_scale;
    int32_t rotary_dim;
    std::vector<double> rotary_bases;  // [layers], empty unless rotary
    std::vector<int32_t> windows;      // [layers], 0: all
    Pool pool;
    bool pool_norm;
    std::vector<HeadLayer> head;
    int32_t head_norm;
    bool normalize;

    int32_t q_width() const { return heads * head_dim; }
    int32_t kv_width() const { return kv_heads * head_dim; }
    int32_t qkv_width() const { return q_width() + 2 * kv_width(); }
    int32_t width() const { return head.empty() ? hidden : head.back().width; }
    bool has_attention_norm(int32_t layer) const { return !norm_first || first_attention_norm || layer > 0; }
};

// Throws Refusal unless every size and choice is one that the engine can run.
Spec checked_spec(const ingot_spec& facts);

inline int32_t round_up(int32_t value, int32_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace ingot
