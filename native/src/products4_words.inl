// Sums of 32 products of codes 0..15 and -127..127 for sets without an instruction for four eight-bit products: pairs
// are summed in sixteen bits, where eight of them fit: 8 * 2 * 15 * 127 = 30480.

namespace ingot {
namespace {

// Each row takes, of each vector, a sum, words that are still being summed, and a total.
template <int C>
constexpr int rows4_at_once = lanes == 16 ? 8 / C : 4;

INGOT_INLINE I begin_products(I) { return zero_int(); }
INGOT_INLINE I add_products(I words, I u8, I s8) { return add_words(words, dot2_bytes(u8, s8)); }
INGOT_INLINE I end_products(I sum, I words) { return add(sum, sums_of_words(words)); }

}  // namespace
}  // namespace ingot
