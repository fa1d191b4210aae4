// Exponential and activations, on vectors. Errors are bounds over all floats, found by trying a dense grid.

namespace ingot {
namespace {

// The order of the arguments matters: maximum and minimum give the second where either is NaN.
// 2^x for x <= 127, a weight of the softmax: relative error 2e-7, and exactly 0 far below -126.
INGOT_INLINE F power_of_two(F x) {
    const F asked = x;
    x = maximum(set(lowest_power), x);
    const F whole = nearest(x), part = x - whole;
    F y = set(1.327647152e-03f);
    y = fma(y, part, set(9.675541331e-03f));
    y = fma(y, part, set(5.550713275e-02f));
    y = fma(y, part, set(2.402211972e-01f));
    y = fma(y, part, set(6.931469671e-01f));
    y = fma(y, part, set(1.000000072f));
    y = times_power_of_two(y, whole);
    if constexpr (lowest_power < -150.0f) return y;  // what is smaller than any float has become 0 by itself
    return drop(y, below(asked, set(lowest_power)));
}

// e^x for x in [-87, 88]; cut there. The product with log2(e) is split, or its rounding would cost x * 6e-8.
INGOT_INLINE F exponential(F x) {
    x = minimum(set(88.0f), maximum(set(-87.0f), x));
    const F whole = nearest(x * set(1.442695041f));
    const F rest = fnma(whole, set(-2.12194440e-4f), fnma(whole, set(0.693359375f), x));
    const F part = rest * set(1.442695041f);
    F y = set(1.534581161e-04f);
    y = fma(y, part, set(1.339993122e-03f));
    y = fma(y, part, set(9.618488959e-03f));
    y = fma(y, part, set(5.550328777e-02f));
    y = fma(y, part, set(2.402264689e-01f));
    y = fma(y, part, set(6.931472057e-01f));
    y = fma(y, part, set(1.0f));
    return times_power_of_two(y, whole);
}

// x Phi(x) = max(x, 0) - a Phi(-a) with a = |x|. The second term is a polynomial in a, best in the sense of the
// largest error on [0, 5.6]; beyond, it stays at its last value, below 4e-8. Even and odd powers are summed apart, so
// that one chain need not wait for the other. Absolute error 2.1e-7, most of it rounding, and half of the last place.
INGOT_INLINE F gelu(F x) {
    const F a = minimum(magnitude(x), set(5.6f));
    const F s = fma(a, set(0.357142857f), set(-1.0f));
    const F u = s * s;
    F y = set(3.350355895e-03f), z = set(-9.743827395e-03f);
    y = fma(y, u, set(-6.163962651e-03f));
    z = fma(z, u, set(4.740095511e-02f));
    y = fma(y, u, set(-3.045305796e-02f));
    z = fma(z, u, set(-8.045540750e-02f));
    y = fma(y, u, set(1.369832754e-01f));
    z = fma(z, u, set(-7.294304203e-03f));
    y = fma(y, u, set(-1.892467737e-01f));
    z = fma(z, u, set(2.183653414e-01f));
    y = fma(y, u, set(-2.863228135e-02f));
    z = fma(z, u, set(-1.980371773e-01f));
    y = fma(y, u, set(2.747290432e-01f));
    z = fma(z, u, set(-1.980734468e-01f));
    y = fma(y, u, set(8.687962592e-02f));
    z = fma(z, u, set(-2.216348611e-02f));
    y = fma(y, u, set(2.555133775e-03f));
    y = fma(z, s, y);
    return fnma(y, a, maximum(set(0.0f), x));
}

INGOT_INLINE F sigmoid(F x) { return set(1.0f) / (set(1.0f) + exponential(set(0.0f) - x)); }
INGOT_INLINE F hyperbolic_tangent(F x) { return fma(set(2.0f), sigmoid(x + x), set(-1.0f)); }
INGOT_INLINE F gelu_tanh(F x) {
    const F inner = set(1.59576912f) * fma(x * x * x, set(0.044715f), x);
    return x * sigmoid(inner);
}

template <Activation activation>
INGOT_INLINE F activate(F x) {
    if constexpr (activation == Activation::gelu) return gelu(x);
    if constexpr (activation == Activation::gelu_tanh) return gelu_tanh(x);
    if constexpr (activation == Activation::relu) return maximum(set(0.0f), x);
    if constexpr (activation == Activation::silu) return x * sigmoid(x);
    if constexpr (activation == Activation::tanh) return hyperbolic_tangent(x);
    return x;
}

}  // namespace
}  // namespace ingot
