// Each lane gains the sum of its four products.

namespace ingot {
namespace {

INGOT_INLINE I dot4(I acc, I u8, I s8) { return _mm512_dpbusd_epi32(acc, u8, s8); }

}  // namespace
}  // namespace ingot
