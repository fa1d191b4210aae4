// Products of bf16 where no instruction multiplies them: each half of a lane is widened to a float, and the even and
// the odd inputs have sums of their own, which also hides half of the latency where rows are few. Included after
// attention_fp32.inl.

namespace ingot {
namespace {

// With two sums each: of 32 registers 6 rows by two panels, of 16 three rows by the halves of one.
constexpr int rows16_at_once = lanes == 16 ? 6 : 3;

INGOT_INLINE void put_rounded(Cell* p, F x, F y) {
    store(p, nearest_bf16(x));
    store(p + lanes, nearest_bf16(y));
}

}  // namespace
}  // namespace ingot

#include "linear16.inl"

namespace ingot {
namespace {

// R rows by the vectors of outputs that go together: panels side by side, or the halves of one.
template <int R, int C>
INGOT_APART void multiply_block16(const Rows16& given, float* products) {
    constexpr int V = 16 * C / lanes;
    const Rows16 part = given;  // a copy that no store can change
    const int64_t next = lanes == 16 ? 16 * part.k_pad : 2 * lanes;  // to the next vector of outputs
    const Cell* x = part.cells;
    const uint16_t* w = part.panels;
    F even[R][V], odd[R][V];
    each<R * V>(INGOT_EACH(i) { even[i / V][i % V] = odd[i / V][i % V] = set(0.0f); });
    for (int64_t k = 0; k < part.k_pad; k += 2, x += 2, w += 32) {
        each<V>(INGOT_EACH(v) {
            const I both = load_bytes(reinterpret_cast<const uint8_t*>(w + v * next));
            const F lower = lower_bf16(both), upper = upper_bf16(both);
            __builtin_prefetch(w + v * next + part.ahead);
            each<R>(INGOT_EACH(r) {
                even[r][v] = fma(set(x[r * part.k_pad]), lower, even[r][v]);
                odd[r][v] = fma(set(x[r * part.k_pad + 1]), upper, odd[r][v]);
            });
        });
    }
    each<R * V>(INGOT_EACH(i) { store(products + i * lanes, even[i / V][i % V] + odd[i / V][i % V]); });
}

template <int C>
void multiply16(int32_t rows, Rows16& part, float* products) {
    multiply_any16<rows16_at_once, C>(rows, part, products);
}

}  // namespace
}  // namespace ingot
