// The packed tensors of a transformer, found by name and checked against its spec.
#pragma once
#include <vector>

#include "matrix.h"
#include "spec.h"

namespace ingot {

struct NormWeights {
    const float* weight = nullptr;  // null: there is no norm here
    const float* bias = nullptr;
};

// The table of tokens: whichever of the forms is there. None: the last matrix of the head is the table.
struct Tokens {
    const float* weight = nullptr;    // [vocab][hidden]
    const int8_t* codes = nullptr;    // [vocab][hidden]
    const uint16_t* bf16 = nullptr;   // [vocab][hidden]
    const uint8_t* codes4 = nullptr;  // [vocab][hidden / 2]: column b low, b + hidden / 2 high, stored + 8
    const float* scales = nullptr;    // [vocab], of either codes
};

struct Block {
    NormWeights attention_norm, mlp_norm;
    Matrix qkv, o, up, gate, down;
    const float* cosine = nullptr;  // [positions][rotary_dim / 2]
    const float* sine = nullptr;
};

struct Model {
    Spec spec;
    Tokens tokens;
    const float* positions = nullptr;  // [position_offset + positions][hidden], or null
    const float* types = nullptr;      // [token_types][hidden], or null
    const float* relative = nullptr;   // [heads][2 * positions - 1], or null
    NormWeights embedding_norm, final_norm, pool_norm, head_norm;
    std::vector<Block> blocks;
    std::vector<Matrix> head;
    std::vector<std::vector<float>> angles;  // owns what the blocks' cosine and sine point to

    Operand::Widths widest_operand() const;
};

// The norm that the network has: of layers or root-mean-square. y may be x.
void normalize(const Kernels& kernels, const Spec& spec, const NormWeights& norm, const float* x, int64_t ld_x,
               int32_t rows, int32_t n, float* y, int64_t ld_y);

// Adds up the embeddings of a token: of its id, of row `place` of the positions and of its type, where there are such.
void embed_token(const Model& model, int64_t id, int64_t place, int64_t type, float* x);

// Throws Refusal naming the tensor that is missing, of another size, misaligned or not finite.
Model checked_model(const ingot_spec& spec, const ingot_tensor* tensors, uint64_t n_tensors);

}  // namespace ingot
