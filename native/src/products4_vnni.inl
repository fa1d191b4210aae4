// Sums of 32 products of codes 0..15 and -127..127 with the set's `dot4`.

namespace ingot {
namespace {

// Each row takes, of each vector, a sum and a total.
template <int C>
constexpr int rows4_at_once = lanes == 8 || C == 2 ? 6 : 8;

INGOT_INLINE I begin_products(I sum) { return sum; }
INGOT_INLINE I add_products(I sum, I u8, I s8) { return dot4(sum, u8, s8); }
INGOT_INLINE I end_products(I, I sum) { return sum; }

}  // namespace
}  // namespace ingot
