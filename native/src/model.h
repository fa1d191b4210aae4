// The packed tensors of a transformer, found by name and checked against its spec.
#pragma once
#include <vector>

#include "spec.h"

namespace ingot {

struct NormWeights {
    const float* weight = nullptr;  // null: there is no norm here
    const float* bias = nullptr;
};

// Embeddings: whichever of the two forms is there.
struct Tokens {
    const int8_t* codes = nullptr;   // [vocab][hidden]
    const float* scales = nullptr;   // [vocab]
    const float* weight = nullptr;   // [vocab][hidden]
};

struct Block {
    NormWeights attention_norm, mlp_norm;
    Weights8 qkv, o, up, gate, down;
    const float* cosine = nullptr;  // [positions][rotary_dim / 2]
    const float* sine = nullptr;
};

// A dense layer of the head, in eight bits or in float.
struct HeadWeights {
    bool is_float = false;
    Weights8 packed{};
    const float* weight = nullptr;  // [width][inputs]
    const float* bias = nullptr;    // [width]
    int32_t inputs = 0;
};

struct Model {
    Spec spec;
    Tokens tokens;
    const float* positions = nullptr;  // [position_offset + positions][hidden], or null
    const float* types = nullptr;      // [token_types][hidden], or null
    const float* relative = nullptr;   // [heads][2 * positions - 1], or null
    NormWeights embedding_norm, final_norm, pool_norm, head_norm;
    std::vector<Block> blocks;
    std::vector<HeadWeights> head;
    std::vector<std::vector<float>> angles;  // owns what the blocks' cosine and sine point to
};

// Throws Refusal naming the tensor that is missing, of another size, misaligned or not finite.
Model checked_model(const ingot_spec& spec, const ingot_tensor* tensors, uint64_t n_tensors);

}  // namespace ingot
