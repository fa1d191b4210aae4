// Products of bf16 with the instruction for pairs. Included after attention_bf16.inl.

namespace ingot {
namespace {

constexpr int rows16_at_once = 6;  // two sums each, by two panels, fill 24 registers

INGOT_INLINE void put_rounded(Cell* p, F x, F y) { _mm512_storeu_si512(p, two_to_bf16(x, y)); }

}  // namespace
}  // namespace ingot

#include "linear16.inl"

namespace ingot {
namespace {

// The lines of a panel take turns at two sums: one alone would wait for itself where rows are few.
template <int R, int C>
INGOT_APART void multiply_block16(const Rows16& given, float* products) {
    const Rows16 part = given;  // a copy that no store can change
    const Cell* x = part.cells;
    const uint16_t* w = part.panels;
    F acc[2][R][C];
    each<2 * R * C>(INGOT_EACH(i) { acc[i / (R * C)][i / C % R][i % C] = set(0.0f); });
    for (int64_t k = 0; k < part.k_pad; k += 4, x += 4, w += 64) {
        each<2>(INGOT_EACH(u) {
            F weights[C];
            each<C>(INGOT_EACH(c) {
                const uint16_t* at = w + 32 * u + 16 * part.k_pad * c;
                weights[c] = load(reinterpret_cast<const float*>(at));
                stay(weights[c]);
                __builtin_prefetch(at + part.ahead);
            });
            each<R>(INGOT_EACH(r) {
                const F pair = pair_of(x + r * part.k_pad + 2 * u);
                each<C>(INGOT_EACH(c) { acc[u][r][c] = dot2(acc[u][r][c], pair, weights[c]); });
            });
        });
    }
    each<R * C>(INGOT_EACH(i) { store(products + i * lanes, acc[0][i / C][i % C] + acc[1][i / C][i % C]); });
}

template <int C>
void multiply16(int32_t rows, Rows16& part, float* products) {
    multiply_any16<rows16_at_once, C>(rows, part, products);
}

}  // namespace
}  // namespace ingot
