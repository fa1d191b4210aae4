// Layers of bf16: every granted set against the definition in doubles, the stated bound and the scalar reference, on
// random shapes. Prints 'N passed, N failed'.
//
// bf16_kernels_test [cases per function] [seed]
#include "kernels_check.h"

using checked::about;
using checked::area;
using checked::check;
using checked::Guarded;
using fixture::Packed16;
using fixture::Random;
using ingot::Kernels;

namespace {

// Rounded rows of a set, whichever cells it keeps.
class Cells {
public:
    Cells(const Kernels& set, int32_t rows, int32_t k)
        : k_(k), k_pad_(fixture::round_up(k, 32)), size_(static_cast<size_t>(set.cell_bytes)),
          bytes_(area(rows, k_pad_) * size_, 0xff) {}
    const uint8_t* row(int32_t r) const { return bytes_.data() + area(r, k_pad_) * size_; }
    void round(const Kernels& set, const float* x, int64_t ld, int32_t rows) {
        set.round_rows(x, ld, rows, k_, k_pad_, bytes_.data());
    }
    float at(int32_t r, int32_t i) const {
        const uint8_t* cell = row(r) + area(i, 1) * size_;
        float x;
        uint16_t half;
        std::memcpy(&half, cell, sizeof half);
        if (size_ == 2) return Packed16::widened(half);
        std::memcpy(&x, cell, sizeof x);
        return x;
    }
    int32_t k_pad() const { return k_pad_; }

private:
    int32_t k_, k_pad_;
    size_t size_;
    std::vector<uint8_t> bytes_;
};

bool is_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return (bits & 0xffffu) == 0;
}

// By its distance to the two bf16 around it.
bool is_nearest(float rounded, float x) {
    if (!is_bf16(rounded)) return false;
    if (std::isnan(x)) return std::isnan(rounded);
    if (std::fabs(x) < std::ldexp(1.0f, -126)) return rounded == 0.0f && std::signbit(rounded) == std::signbit(x);
    if (std::isinf(x)) return rounded == x;
    const double size = std::fabs(static_cast<double>(x)), step = std::ldexp(1.0, std::ilogb(x) - 7);
    const double below = std::floor(size / step) * step, above = below + step;
    const bool is_even = std::fmod(below / step, 2.0) == 0.0;
    double best = size - below < above - size || (size - below == above - size && is_even) ? below : above;
    if (best >= std::ldexp(1.0, 128)) best = INFINITY;
    return static_cast<double>(rounded) == std::copysign(best, static_cast<double>(x));
}

void test_round_rows(const Kernels& set, Random& random) {
    const int32_t rows = random.between(1, 5), k = random.between(1, 130);
    Guarded x(rows, k, random);
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t i = 0; i < k; ++i) {  // any bits at all, and half-way cases
            uint32_t bits = static_cast<uint32_t>(random.next() >> 32);
            if (random.between(0, 2) == 0) bits = (bits & 0xffff0000u) | 0x8000u;
            std::memcpy(&x.at(r, i), &bits, sizeof bits);
        }
    x.at(0, k - 1) = random.between(0, 1) ? 3.4e38f : INFINITY;
    Cells cells(set, rows, k);
    cells.round(set, x.data(), x.ld(), rows);
    bool near = true, zero = true;
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t i = 0; i < cells.k_pad(); ++i) {
            if (i < k) near = near && is_nearest(cells.at(r, i), x.at(r, i));
            else zero = zero && cells.at(r, i) == 0.0f;
        }
    check(near, about("round_rows gives the nearest: rows, k", set, {rows, k}));
    check(zero, about("round_rows fills up with zeros: rows, k", set, {rows, k}));
}

struct Layer16 : checked::Layer<ingot::Linear16> {
    Layer16(const Kernels& set, const Kernels& reference, Random& random, int32_t rows, int32_t n, int32_t k)
        : Layer(random, rows, n), packed(random, n, k), x(rows, k, random), cells(set, rows, k),
          floats(reference, rows, k) {
        x.fill(random, -1.0f, 1.0f);
        if (rows > 2 && random.between(0, 1)) x.at(1, k / 2) = NAN;
        cells.round(set, x.data(), x.ld(), rows);
        floats.round(reference, x.data(), x.ld(), rows);
        job.cells = cells.row(0);
        job.weights = &packed.weights();
    }
    ingot::Linear16 from_row(ingot::Linear16 what, int32_t first) const override {
        what.cells = cells.row(first);
        return what;
    }
    ingot::Linear16 for_reference(ingot::Linear16 what) const override {
        what.cells = floats.row(0);
        return what;
    }
    Packed16 packed;
    Guarded x;
    Cells cells, floats;
};

void test_linear16(const Kernels& set, const Kernels& reference, Random& random) {
    const int32_t k = random.between(1, 300), n = random.between(1, 150);
    Layer16 layer(set, reference, random, random.between(0, random.between(0, 3) ? 14 : 70), n, k);
    checked::check_layer(layer, &Kernels::linear16, set, reference, random, 1e-5,
                         "linear16 of " + std::to_string(k));
}

// The products alone: within the bound that kernels.h states, and the same bits in all sets that add in its order.
void test_linear16_definition(const Kernels& set, const Kernels& reference, Random& random) {
    const int32_t k = random.between(1, random.between(0, 3) ? 300 : 2000);
    const int32_t n = random.between(1, 40), rows = random.between(1, 13);
    Layer16 layer(set, reference, random, rows, n, k);
    layer.job.times = layer.job.plus = nullptr;
    const std::vector<float> got = layer.run(set.linear16, layer.job);
    double worst = 0.0;
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t o = 0; o < n; ++o) {
            const double bias = static_cast<double>(layer.packed.weights().bias[o]);
            double exact = bias, size = std::fabs(bias);
            for (int32_t i = 0; i < k; ++i) {
                const auto x = static_cast<double>(layer.cells.at(r, i));
                const double term = x * static_cast<double>(layer.packed.value(o, i));
                exact += term, size += std::fabs(term);
            }
            const double bound = (k + 8) * std::ldexp(size, -24) + std::ldexp(k, -125);
            const double error = std::fabs(exact - static_cast<double>(got[area(r, n) + area(o, 1)]));
            if (!std::isnan(exact)) worst = std::fmax(worst, error / bound);
        }
    check(worst <= 1.0, about("linear16 within its bound: k, n, rows", set, {k, n, rows}, worst));
    if (set.cell_bytes == 4) {
        const std::vector<float> same = layer.run(reference.linear16, layer.for_reference(layer.job));
        check(checked::difference(got, same) == 0.0, about("linear16, the order of sums: k, n, rows", set, {k, n, rows}));
    }
}

void test_set(const Kernels& set, const Kernels& reference, int cases, uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < cases; ++i) {
        test_round_rows(set, random);
        test_linear16(set, reference, random);
        test_linear16_definition(set, reference, random);
    }
}

}  // namespace

int main(int argc, char** argv) { return checked::every_set(argc, argv, test_set); }
