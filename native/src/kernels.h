// The inner loops, once per instruction set. Everything above them is written once.
//
// Contract, the same for every set:
//   * integer sums are exact, so the sets differ in float rounding only;
//   * a row's result depends on that row (and, in attention, on its sequence) alone, never on how many rows
//     are computed beside it: an answer is bit-identical alone and in company;
//   * sums of k products fit 32 bits: k is below 2^17;
//   * no allocation, no globals, no alignment asked of activations; packed weights are 64-byte aligned.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ingot {

enum class Activation : int32_t { none = 0, gelu = 1, gelu_tanh = 2, relu = 3, silu = 4, tanh = 5 };

// A matrix of weights [n][k] in eight bits, one scale per row ("output channel").
//   codes  s8 [n_pad / 16][k_pad / 4][16][4]: sixteen outputs, four inputs together. n_pad and k_pad are n and k
//          rounded up to 16 and 64; what is added is zero. 64 codes of k are one AMX tile.
//   sums   s32 [n_pad]: the sum of a row's codes, for activations that are stored shifted by 128.
struct Weights8 {
    const int8_t* codes;
    const float* scales;   // [n_pad]
    const int32_t* sums;   // [n_pad]
    const float* bias;     // [n_pad]; zeros where the layer has none
    int32_t n, k, n_pad, k_pad;
};

// Rows of activations in eight bits, symmetric, one scale per row: x = (code - 128) * scale, code in 1..255.
// A row of zeros, or of less than 2^-100, has scale 0; a row with NaN or infinity has scale NaN. Columns from k to
// k_pad hold 128.
struct Rows8 {
    uint8_t* codes;        // [rows][k_pad]
    float* scales;         // [rows]
};

struct Linear {
    const uint8_t* codes;  // [rows][k_pad]
    const float* scales;   // [rows]
    const Weights8* weights;
    int32_t rows;
    int32_t first, last;   // columns of the output to compute: first is a multiple of 16
    Activation activation; // applied to x w^T + bias, before what follows
    const float* times;    // [rows][ld_times] or null: result is multiplied by it (gated layers)
    int64_t ld_times;
    const float* plus;     // [rows][ld_plus] or null: then added (residual); may be the output itself
    int64_t ld_plus;
    float* out;            // [rows][ld_out]
    int64_t ld_out;
};

// A matrix of weights [n][k] in four bits; `group` (32 or 128, dividing k) neighbouring inputs of an output share a
// scale.
//   codes   u8 [n_pad / 16][k / 8][16][4]: a byte holds two codes, each stored + 8 (so -8..7 is 0..15). Of byte
//           (b, o, j) the low half is input 8 b + j, the high half input 8 b + 4 + j. n_pad is n rounded up to 16;
//           what is added has code 0 (stored 8) and scale 0.
//   ratios  f16 [n_pad / 16][k / group][16]: the scale of a group over its output's `scales`, 0..1, so that weights
//           of every size fit f16.
struct Weights4 {
    const uint8_t* codes;
    const uint16_t* ratios;
    const float* scales;   // [n_pad]
    const float* bias;     // [n_pad]; zeros where the layer has none
    int32_t n, k, n_pad, group;
};

// Rows of activations in eight bits, symmetric, one scale for every group of a row: x = code * scale, code in
// -127..127. Scales 0 and NaN as in Rows8.
struct Groups8 {
    int8_t* codes;         // [rows][k]
    float* scales;         // [rows][k / group]
    int32_t* sums;         // [rows][k / group], of the codes
};

// As Linear. The product is scales[o] * sum over g of (ratios[o][g] * x.scales[r][g]) * (the integer sum of group g),
// the groups in ascending order, each added by a fused multiply-add in fp32.
struct Linear4 {
    Groups8 x;
    const Weights4* weights;
    int32_t rows;
    int32_t first, last;
    Activation activation;
    const float* times;
    int64_t ld_times;
    const float* plus;
    int64_t ld_plus;
    float* out;
    int64_t ld_out;
};

// A matrix of weights [n][k] in bf16: the upper half of a float, eight bits of significand; finite, none subnormal.
//   values  u16 [n_pad / 16][k_pad / 2][16][2]: sixteen outputs, two inputs together. n_pad and k_pad are n and k
//           rounded up to 16 and 32; what is added is zero. 32 values of k are one AMX tile.
struct Weights16 {
    const uint16_t* values;
    const float* bias;     // [n_pad]; zeros where the layer has none
    int32_t n, k, n_pad, k_pad;
};

// As Linear, of rows that `round_rows` made. Products of two bf16 are exact in fp32, and sums are fp32:
//   * where a set's cells are floats, the even inputs and the odd ones are summed apart, in ascending order, and the
//     two sums are added: the same bits in all these sets, as long as no product is below 2^-126;
//   * where they are bf16, in the order of the instruction for pairs, which takes subnormal numbers for zeros.
// In all of them the product is within (k + 8) 2^-24 times the sum of |x w|, plus k 2^-125, of the exact one.
struct Linear16 {
    const void* cells;     // [rows][k_pad]
    const Weights16* weights;
    int32_t rows;
    int32_t first, last;
    Activation activation;
    const float* times;
    int64_t ld_times;
    const float* plus;
    int64_t ld_plus;
    float* out;
    int64_t ld_out;
};

// Attention of some rows of one head of one sequence. Scores, softmax and sums are fp32 (products may be bf16
// where the set has them: then queries, keys, values and probabilities are rounded to it, sums stay fp32).
// A row that sees no key is zeros. NaN or infinity among the values may reach rows that do not see it.
struct Attention {
    const float* q;        // [rows][ld_q], head_dim columns
    const float* k;        // [keys][ld_k]
    const float* v;        // [keys][ld_v]
    float* out;            // [rows][ld_out]
    int64_t ld_q, ld_k, ld_v, ld_out;
    int32_t rows, keys, head_dim;
    int32_t first_row;     // position of row 0 among the keys: for causal masks, windows and relative bias
    bool causal;           // key j is seen by row i when j <= first_row + i
    int32_t window;        // 0: all; else only keys with |i - j| <= window
    float scale;           // of the scores
    const float* relative; // null, or a table indexed by (j - i) + relative_zero, added to the scaled scores
    int32_t relative_zero;
    void* scratch;         // attention_scratch(keys, head_dim, rows) bytes, 64-byte aligned
};

// The keys and values of a sequence lie in pages: 32 tokens of one layer and one head of keys. 64-byte aligned.
//   32 bits: keys f32 [head_dim][32], values f32 [32][head_dim]
//    8 bits: keys s8 [head_dim][32], values s8 [32][head_dim], scales of keys f32 [32], scales of values f32 [32]:
//            symmetric per token and head as in Rows8, but the codes are signed
struct Cache {
    int32_t bits;          // 32 or 8
    int32_t head_dim;
};
constexpr int32_t kPage = 32;

// Each file has its own: an inline function could be kept in the form of another file's instruction set.
static inline size_t values_offset(Cache cache) {
    return static_cast<size_t>(cache.head_dim) * kPage * static_cast<size_t>(cache.bits / 8);
}
static inline size_t scales_offset(Cache cache) { return 2 * values_offset(cache); }
static inline size_t page_bytes(Cache cache) {
    const size_t scales = cache.bits == 8 ? 2 * kPage * sizeof(float) : 0;
    return (scales_offset(cache) + scales + 63) / 64 * 64;
}

// Causal attention of the query heads that share one head of keys: `rows` consecutive tokens, whose keys and values
// are in the pages already. In fp32 in every set. Row r is at position p = first_row + r and sees keys 0..p, or only
// those from p - window on. Pages that no row sees are not touched, and what a row does not see cannot reach it: a
// row's bits depend on its query, its position and the keys and values up to it.
struct PagedAttention {
    Cache cache;
    const float* q;        // row r, head i of the group: q + r * ld_q + i * head_dim
    int64_t ld_q;
    float* out;            // likewise
    int64_t ld_out;
    const uint8_t* const* pages;  // page p holds positions 32 p .. 32 p + 31
    int32_t rows, group;   // tokens, and query heads that share these keys
    int32_t first_row;     // position of row 0
    int32_t window;        // 0: all
    float scale;           // of the scores
    void* scratch;         // paged_scratch(cache, rows, group, first_row + rows) bytes, 64-byte aligned
};

struct Kernels {
    const char* name;      // "scalar", "avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-vnni-bf16", "amx"
    // Largest magnitude of the row / 127; ties to even.
    void (*quantize_rows)(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t k_pad, Rows8 out);
    void (*linear)(const Linear& job);
    // y = (x - mean) / sqrt(var + epsilon) * weight + bias; bias may be null. y may be x.
    void (*layer_norm)(const float* x, int64_t ld_x, int32_t rows, int32_t n, const float* weight, const float* bias,
                       float epsilon, float* y, int64_t ld_y);
    // y = x / sqrt(mean(x^2) + epsilon) * weight. y may be x.
    void (*rms_norm)(const float* x, int64_t ld_x, int32_t rows, int32_t n, const float* weight, float epsilon,
                     float* y, int64_t ld_y);
    // Rotates pairs (d, d + rotary / 2) of `heads` heads in place; row r by the angles at positions[r].
    // cosine and sine: [positions][rotary / 2].
    void (*rotate)(float* x, int64_t ld, int32_t rows, int32_t heads, int32_t head_dim, int32_t rotary,
                   const int32_t* positions, const float* cosine, const float* sine);
    void (*attention)(const Attention& job);
    // Grows with each argument: the memory for the largest job serves all smaller ones.
    size_t (*attention_scratch)(int32_t keys, int32_t head_dim, int32_t rows);
    // Largest magnitude of the group / 127; ties to even.
    void (*quantize_groups)(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t group, Groups8 out);
    void (*linear4)(const Linear4& job);
    // Puts the key and the value of one token, head_dim floats each, into a slot of a page. The same bits in all sets.
    void (*store_page)(const Cache& cache, const float* key, const float* value, uint8_t* page, int32_t slot);
    void (*paged_attention)(const PagedAttention& job);
    // `keys` of the longest sequence. Grows with each argument, too.
    size_t (*paged_scratch)(const Cache& cache, int32_t rows, int32_t group, int32_t keys);
    // The nearest bf16, ties to even; subnormal values become zeros, NaN stays NaN, what is too large becomes infinite.
    // Columns from k to k_pad are zeros. Kept as bf16 where the set multiplies those (`cell_bytes` 2), else as floats
    // of the same value (4).
    void (*round_rows)(const float* x, int64_t ld, int32_t rows, int32_t k, int32_t k_pad, void* cells);
    void (*linear16)(const Linear16& job);
    int32_t cell_bytes;
};

// The table of an instruction set, or null if this build or this CPU (CPUID, XCR0, and for AMX the kernel's
// permission) does not have it. Never executes an instruction that was not granted.
const Kernels* kernels_of(const char* name);
// The fastest that is granted; `scalar` always is.
const Kernels* best_kernels();

}  // namespace ingot
