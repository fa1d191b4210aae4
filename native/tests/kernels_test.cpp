// Every granted set against the scalar reference, on random shapes. Prints 'N passed, N failed'.
//
// kernels_test [cases per function] [seed]
#include "kernels_check.h"

using checked::about;
using checked::area;
using checked::check;
using checked::difference;
using checked::Guarded;
using checked::names;
using checked::same_bits;
using fixture::Aligned;
using fixture::Packed;
using fixture::Random;
using ingot::Activation;
using ingot::Kernels;

namespace {

struct Codes {
    Codes(int32_t rows, int32_t k)
        : k_pad(fixture::round_up(k, 64)), codes(area(rows, k_pad) + 64), scales(area(rows, 1) + 1) {}
    ingot::Rows8 rows() { return {codes.data(), scales.data()}; }
    int32_t k_pad;
    std::vector<uint8_t> codes;
    std::vector<float> scales;
};

void test_quantize(const Kernels& set, const Kernels& reference, Random& random) {
    const int32_t rows = random.between(0, 9), k = random.between(1, 600);
    const float size = std::ldexp(1.0f, random.between(-140, 120));
    Guarded x(rows, k, random);
    x.fill(random, -size, size);
    if (rows > 1 && random.between(0, 3) == 0) x.at(1, k - 1) = random.between(0, 1) ? NAN : -INFINITY;
    if (rows > 2)
        for (int32_t c = 0; c < k; ++c) x.at(2, c) = 0.0f;
    if (rows > 3) x.at(3, 0) = 1e30f;
    Codes got(rows, k), expected(rows, k);
    std::fill(got.codes.begin(), got.codes.end(), uint8_t{3});
    std::fill(expected.codes.begin(), expected.codes.end(), uint8_t{3});
    set.quantize_rows(x.data(), x.ld(), rows, k, got.k_pad, got.rows());
    reference.quantize_rows(x.data(), x.ld(), rows, k, got.k_pad, expected.rows());
    check(got.codes == expected.codes && difference(got.scales, expected.scales) == 0.0,
          about("quantize_rows: rows, k", set, {rows, k}));
}

std::vector<float> run_linear(const Kernels& set, ingot::Linear job, int32_t n, const std::vector<float>& before) {
    std::vector<float> out = before;
    job.out = out.data();
    job.ld_out = n;
    if (job.plus == before.data()) job.plus = out.data();  // the residual is the output itself
    set.linear(job);
    return out;
}

void test_linear(const Kernels& set, const Kernels& reference, Random& random) {
    const int32_t k = random.between(1, 600), n = random.between(1, 300), rows = random.between(0, 40);
    const Packed packed(random, n, k);
    Codes codes(rows, k);
    for (size_t i = 0; i < codes.codes.size(); ++i)
        codes.codes[i] = static_cast<int32_t>(i) % codes.k_pad < k ? static_cast<uint8_t>(random.between(1, 255)) : 128;
    for (float& scale : codes.scales) scale = random.uniform(0.0f, 0.02f);
    if (rows > 2) codes.scales[1] = NAN;
    const std::vector<float> times = random.floats(area(rows, n), -1.0f, 1.0f);
    const std::vector<float> plus = random.floats(area(rows, n), -1.0f, 1.0f);
    const std::vector<float> before(area(rows, n) + 16, 5.5f);
    ingot::Linear job = {};
    job.codes = codes.codes.data();
    job.scales = codes.scales.data();
    job.weights = &packed.weights();
    job.rows = rows;
    job.first = random.between(0, (n - 1) / 16) * 16;
    job.last = random.between(0, 1) ? n : random.between(job.first, n);
    job.activation = static_cast<Activation>(random.between(0, 5));
    if (random.between(0, 2) == 0) job.times = times.data();
    if (random.between(0, 1)) job.plus = random.between(0, 1) ? plus.data() : before.data();
    job.ld_times = job.ld_plus = n;
    const std::vector<float> got = run_linear(set, job, n, before), expected = run_linear(reference, job, n, before);
    const double error = difference(got, expected);
    check(error < 3e-6, about("linear: k, n, rows, first, last, activation", set,
                              {k, n, rows, job.first, job.last, static_cast<int>(job.activation)}, error));
    bool outside = true;
    for (size_t i = 0; i < got.size(); ++i) {
        const int32_t c = static_cast<int32_t>(i % static_cast<size_t>(n));
        if (c < job.first || c >= job.last || i >= area(rows, n)) outside = outside && got[i] == before[i];
    }
    check(outside, about("linear writes its columns only: k, n, rows", set, {k, n, rows}));
    for (int32_t r = 0; r < rows; r += 7) {
        ingot::Linear one = job;
        one.codes += area(r, codes.k_pad);
        one.scales += r;
        one.rows = 1;
        if (one.times) one.times += area(r, n);
        const bool in_place = one.plus == before.data();
        if (one.plus && !in_place) one.plus += area(r, n);
        const std::vector<float> row(before.begin(), before.begin() + n);
        if (in_place) one.plus = row.data();
        const std::vector<float> alone = run_linear(set, one, n, row);
        const auto start = got.begin() + static_cast<long>(area(r, n));
        check(same_bits(alone, {start, start + n}),
              about("linear, a row alone: k, n, rows, row", set, {k, n, rows, r}));
    }
}

void test_norms(const Kernels& set, const Kernels& reference, Random& random) {
    const int32_t rows = random.between(0, 6), n = random.between(1, 500);
    Guarded x(rows, n, random), y(rows, n, random), z(rows, n, random);
    const float size = std::ldexp(1.0f, random.between(-30, 50));
    x.fill(random, -size, size);
    const std::vector<float> weight = random.floats(area(n, 1), -2.0f, 2.0f);
    const std::vector<float> bias = random.floats(area(n, 1), -1.0f, 1.0f);
    const float* shift = random.between(0, 1) ? bias.data() : nullptr;
    const auto rows_of = [&](Guarded& a) {
        std::vector<float> all;
        for (int32_t r = 0; r < rows; ++r) all.insert(all.end(), &a.at(r, 0), &a.at(r, 0) + n);
        return all;
    };
    for (const bool layer : {true, false}) {
        const auto run = [&](const Kernels& k, float* from, int64_t ld, int32_t count, float* to, int64_t ld_to) {
            if (layer)
                k.layer_norm(from, ld, count, n, weight.data(), shift, 1e-6f, to, ld_to);
            else
                k.rms_norm(from, ld, count, n, weight.data(), 1e-6f, to, ld_to);
        };
        run(set, x.data(), x.ld(), rows, y.data(), y.ld());
        run(reference, x.data(), x.ld(), rows, z.data(), z.ld());
        const double error = difference(rows_of(y), rows_of(z));
        check(error < 2e-5, about(layer ? "layer_norm: rows, n" : "rms_norm: rows, n", set, {rows, n}, error));
        check(y.intact(0, n) && x.intact(0, n), about("norm writes its rows only", set, {rows, n}));
        for (int32_t r = 0; r < rows; ++r) {  // alone, and in place
            std::vector<float> alone(&x.at(r, 0), &x.at(r, 0) + n);
            run(set, alone.data(), n, 1, alone.data(), n);
            check(same_bits(alone, {&y.at(r, 0), &y.at(r, 0) + n}), about("norm, a row alone", set, {rows, n, r}));
        }
    }
}

void test_rotate(const Kernels& set, const Kernels& reference, Random& random) {
    const int32_t rows = random.between(0, 5), heads = random.between(1, 4), dim = random.between(2, 100);
    const int32_t rotary = random.between(0, 1) ? dim / 2 * 2 : random.between(1, dim / 2) * 2;
    Guarded x(rows, heads * dim, random);
    x.fill(random, -3.0f, 3.0f);
    Guarded y = x;
    std::vector<int32_t> positions;
    for (int32_t r = 0; r < rows; ++r) positions.push_back(random.between(0, 19));
    const std::vector<float> cosine = random.floats(area(20, rotary / 2), -1.0f, 1.0f);
    const std::vector<float> sine = random.floats(area(20, rotary / 2), -1.0f, 1.0f);
    set.rotate(x.data(), x.ld(), rows, heads, dim, rotary, positions.data(), cosine.data(), sine.data());
    reference.rotate(y.data(), y.ld(), rows, heads, dim, rotary, positions.data(), cosine.data(), sine.data());
    std::vector<float> got, expected;
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t c = 0; c < heads * dim; ++c) got.push_back(x.at(r, c)), expected.push_back(y.at(r, c));
    const double error = difference(got, expected);
    check(error < 1e-6 && x.intact(0, heads * dim),
          about("rotate: rows, heads, dim, rotary", set, {rows, heads, dim, rotary}, error));
}

std::vector<float> run_attention(const Kernels& set, ingot::Attention job, bool* within = nullptr) {
    Random random(1);
    Guarded out(job.rows, job.head_dim, random);
    const size_t bytes = set.attention_scratch(job.keys, job.head_dim, job.rows);
    Aligned<uint8_t> scratch(bytes);
    std::memset(scratch.data(), 0xff, bytes);  // NaN: nothing may be read before it was written
    job.out = out.data();
    job.ld_out = out.ld();
    job.scratch = scratch.data();
    set.attention(job);
    if (within) *within = out.intact(0, job.head_dim);
    std::vector<float> rows;
    for (int32_t r = 0; r < job.rows; ++r) rows.insert(rows.end(), &out.at(r, 0), &out.at(r, 0) + job.head_dim);
    return rows;
}

void test_attention(const Kernels& set, const Kernels& reference, Random& random, double bound) {
    const int32_t keys = random.between(0, 19) ? random.between(1, 200) : 0;
    const int32_t dim = random.between(1, random.between(0, 3) ? 70 : 256);
    const bool whole = random.between(0, 1) != 0;
    const int32_t rows = whole ? keys : random.between(0, random.between(0, 1) ? 12 : 200);
    // Extremes: scores so large that one key takes all, values near the ends of the range, keys below it.
    const float size = random.between(0, 3) ? 1.0f : 4.0f, height = random.between(0, 7) ? 1.0f : 1e30f;
    const float steep = random.between(0, 7) || bound > 1e-3 ? 1.0f : 1e20f;
    const float low_keys = random.between(0, 9) ? 1.0f : 1e-40f;
    Guarded q(rows, dim, random), k(keys, dim, random), v(keys, dim, random);
    q.fill(random, -size * steep, size * steep);
    k.fill(random, -size * low_keys, size * low_keys);
    v.fill(random, -height, height);
    const int32_t broken = rows > 3 && random.between(0, 5) == 0 ? random.between(0, rows - 1) : -1;
    if (broken >= 0) q.at(broken, 0) = NAN;  // its own row is lost, and no other
    ingot::Attention job = {};
    job.q = q.data(), job.k = k.data(), job.v = v.data();
    job.ld_q = q.ld(), job.ld_k = k.ld(), job.ld_v = v.ld();
    job.rows = rows, job.keys = keys, job.head_dim = dim;
    job.first_row = whole ? 0 : random.between(-3, keys + 5);
    job.causal = random.between(0, 1) != 0;
    job.window = random.between(0, 1) ? 0 : random.between(1, 70);
    job.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    // The table covers the pairs that exist, and not one more.
    const int32_t low = -(job.first_row + rows - 1), high = keys - 1 - job.first_row;
    const bool pairs = rows > 0 && keys > 0;
    const std::vector<float> table = random.floats(area(high - low + 1, pairs ? 1 : 0), -2.0f, 2.0f);
    if (random.between(0, 2) == 0 && pairs) job.relative = table.data();
    job.relative_zero = -low;
    bool within = true;
    const std::vector<float> got = run_attention(set, job, &within), expected = run_attention(reference, job);
    const double error = difference(got, expected);
    const auto name = [&](const char* what) {
        return about(what, set, {rows, keys, dim, job.first_row, job.causal, job.window, job.relative != nullptr},
                     error);
    };
    check(error < bound, name("attention: rows, keys, dim, first_row, causal, window, relative"));
    check(within, name("attention writes its rows only"));
    for (int32_t r = 0; r < rows; r += random.between(1, 30)) {
        ingot::Attention some = job;
        some.rows = random.between(1, rows - r);
        some.q += r * some.ld_q;
        some.first_row += r;
        const std::vector<float> alone = run_attention(set, some);
        const auto start = got.begin() + static_cast<long>(area(r, dim));
        check(same_bits(alone, {start, start + static_cast<long>(alone.size())}), name("attention, fewer rows"));
    }
}

// What an activation makes of every size of input, through a layer whose product is zero and whose bias is not.
void test_activations(const Kernels& set, const Kernels& reference) {
    Random random(11);
    const int32_t n = 65536;
    const Packed packed(random, n, 64);
    std::vector<float> bias(static_cast<size_t>(n));
    for (int32_t i = 0; i < n; ++i) bias[static_cast<size_t>(i)] = static_cast<float>(i - n / 2) * (24.0f / n);
    const float extremes[] = {1e30f, -1e30f, 1e-40f, -1e-40f, 90.0f, -90.0f, 300.0f, -300.0f, 0.0f, -0.0f};
    for (int i = 0; i < 10; ++i) bias[static_cast<size_t>(i)] = extremes[i];
    ingot::Weights8 weights = packed.weights();
    weights.bias = bias.data();
    const std::vector<uint8_t> codes(64, 128);
    const float scale = 1.0f;
    for (int a = 0; a <= 5; ++a) {
        ingot::Linear job = {};
        job.codes = codes.data(), job.scales = &scale, job.weights = &weights;
        job.rows = 1, job.last = n, job.activation = static_cast<Activation>(a);
        const std::vector<float> before(static_cast<size_t>(n), 0.0f);
        const std::vector<float> got = run_linear(set, job, n, before);
        const std::vector<float> expected = run_linear(reference, job, n, before);
        double most = 0.0;
        for (size_t i = 0; i < got.size(); ++i) {
            const double error = std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
            most = std::fmax(most, error / std::fmax(1.0, std::fabs(static_cast<double>(expected[i]))));
        }
        check(most < 2e-6, about("activation", set, {a}, most));
        if (job.activation != Activation::gelu) continue;
        double beyond = 0.0;  // what an error of 2.2e-7 and of two last places does not explain
        for (size_t i = 0; i < got.size(); ++i) {
            const double x = static_cast<double>(bias[i]), exact = 0.5 * x * std::erfc(-x * std::sqrt(0.5));
            const double error = std::fabs(static_cast<double>(got[i]) - exact);
            beyond = std::fmax(beyond, error - 2.2e-7 - std::ldexp(std::fabs(exact), -22));
        }
        check(beyond == 0.0, about("gelu, the definition", set, {}, beyond));
    }
}

void test_set(const Kernels& set, const Kernels& reference, int cases, uint64_t seed) {
    Random random(seed);
    const std::string name = set.name;
    const bool bf16 = name == "avx512-vnni-bf16" || name == "amx";
    test_activations(set, reference);
    for (int i = 0; i < cases; ++i) {
        test_quantize(set, reference, random);
        test_linear(set, reference, random);
        test_norms(set, reference, random);
        test_rotate(set, reference, random);
        // bf16 keeps eight bits: 2^-9 of each of the values and weights, and of the terms of scores that reach tens.
        test_attention(set, reference, random, bf16 ? 6e-2 : 2e-5);
    }
}

// A cap leaves the sets up to the named one, and a name that nobody knows the reference alone.
void test_cap() {
    for (const char* name : names) {
        setenv("INGOT_NATIVE_ISA", name, 1);
        bool above = false;
        for (const char* other : names) {
            check(!above || ingot::kernels_of(other) == nullptr, std::string(other) + " is above the cap " + name);
            above = above || std::strcmp(name, other) == 0;
        }
        const ingot::Kernels* best = ingot::best_kernels();
        check(ingot::kernels_of(best->name) == best, std::string("the best below ") + name + " is granted");
    }
    setenv("INGOT_NATIVE_ISA", "avx1024", 1);
    check(std::strcmp(ingot::best_kernels()->name, "scalar") == 0, "an unknown cap leaves the reference");
    unsetenv("INGOT_NATIVE_ISA");
    check(ingot::kernels_of("unheard of") == nullptr, "an unknown name has no table");
}

}  // namespace

int main(int argc, char** argv) {
    test_cap();
    return checked::every_set(argc, argv, test_set);
}
