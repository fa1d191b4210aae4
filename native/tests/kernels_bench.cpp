// Times the kernels of every granted set on one thread: best of many repeats.
//
// Each linear is also given as a share of what the machine does with vpdpbusd on registers alone, measured here.
#include <cstdio>
#include <string>

#include "kernels_fixture.h"
#include "peak.h"

using fixture::Aligned;
using fixture::Packed;
using fixture::Random;
using peak::best_of;

namespace {

struct Shape {
    int32_t rows, k, n;
    ingot::Activation activation;
};

void time_linear(const ingot::Kernels& set, const Shape& shape, double budget, double limit) {
    Random random(7);
    const Packed packed(random, shape.n, shape.k);
    const auto size = [](int32_t a, int32_t b) { return static_cast<size_t>(a) * static_cast<size_t>(b); };
    std::vector<float> x = random.floats(size(shape.rows, shape.k), -2.0f, 2.0f);
    Aligned<float> out(size(shape.rows, shape.n));
    Aligned<uint8_t> codes(size(shape.rows, packed.weights().k_pad));
    Aligned<float> scales(static_cast<size_t>(shape.rows));
    const ingot::Rows8 rows = {codes.data(), scales.data()};
    const double quantize = best_of(budget / 4, [&] {
        set.quantize_rows(x.data(), shape.k, shape.rows, shape.k, packed.weights().k_pad, rows);
    });
    const ingot::Linear job = {codes.data(), scales.data(), &packed.weights(), shape.rows, 0, shape.n, shape.activation,
                               nullptr, 0, nullptr, 0, out.data(), shape.n};
    const double took = best_of(budget, [&] { set.linear(job); });
    const double tops = 2.0 * shape.rows * shape.k * shape.n / took / 1e12;
    std::printf("%-17s linear %3d x %4d x %5d %-5s %9.1f us %6.3f TOPS %5.1f %% of the peak; quantize_rows %6.1f us\n",
                set.name, shape.rows, shape.k, shape.n, shape.activation == ingot::Activation::gelu ? "gelu" : "",
                took * 1e6, tops, limit > 0 ? 100.0 * tops / limit : 0.0, quantize * 1e6);
    std::fflush(stdout);
}

void time_attention(const ingot::Kernels& set, int32_t rows, int32_t keys, int32_t dim, int32_t heads, double budget) {
    Random random(3);
    const int32_t ld = 3 * dim * heads;
    std::vector<float> qkv = random.floats(static_cast<size_t>(keys) * static_cast<size_t>(ld), -1.0f, 1.0f);
    std::vector<float> out(static_cast<size_t>(rows) * static_cast<size_t>(dim * heads));
    Aligned<uint8_t> scratch(set.attention_scratch(keys, dim, rows));
    const double took = best_of(budget, [&] {
        for (int32_t h = 0; h < heads; ++h) {
            ingot::Attention job = {};
            job.q = qkv.data() + h * dim;
            job.k = job.q + heads * dim;
            job.v = job.k + heads * dim;
            job.out = out.data() + h * dim;
            job.ld_q = job.ld_k = job.ld_v = ld;
            job.ld_out = heads * dim;
            job.rows = rows;
            job.keys = keys;
            job.head_dim = dim;
            job.scale = 0.17f;
            job.scratch = scratch.data();
            set.attention(job);
        }
    });
    std::printf("%-17s attention %3d rows x %4d keys x %3d, %d heads %9.1f us %6.3f TFLOPS\n", set.name, rows, keys,
                dim, heads, took * 1e6, 4.0 * rows * keys * dim * heads / took / 1e12);
    std::fflush(stdout);
}

void time_rows(const ingot::Kernels& set, int32_t rows, int32_t n, double budget) {
    Random random(5);
    const std::vector<float> x = random.floats(static_cast<size_t>(rows) * static_cast<size_t>(n), -1.0f, 1.0f);
    const std::vector<float> weight(static_cast<size_t>(n), 1.0f);
    std::vector<float> y(x.size());
    const double layer = best_of(budget, [&] {
        set.layer_norm(x.data(), n, rows, n, weight.data(), weight.data(), 1e-5f, y.data(), n);
    });
    const double rms = best_of(budget, [&] { set.rms_norm(x.data(), n, rows, n, weight.data(), 1e-5f, y.data(), n); });
    std::printf("%-17s norms of %d x %d: layer_norm %.1f us, rms_norm %.1f us\n", set.name, rows, n, layer * 1e6,
                rms * 1e6);
}

}  // namespace

// kernels_bench [set] [seconds per shape]
int main(int argc, char** argv) {
    using ingot::Activation;
    const std::string only = argc > 1 ? argv[1] : "all";
    const double budget = argc > 2 ? std::atof(argv[2]) : 0.3;
    const double limit = ingot::kernels_of("avx512-vnni") ? peak::tops() : 0.0;
    std::printf("peak of vpdpbusd on registers: %.3f TOPS\n", limit);
    const Shape shapes[] = {{64, 384, 1152, Activation::none},  {64, 384, 1536, Activation::none},
                            {64, 384, 1536, Activation::gelu},  {64, 1536, 384, Activation::none},
                            {64, 384, 384, Activation::none},   {16, 384, 1536, Activation::none},
                            {16, 384, 1536, Activation::gelu},  {1, 768, 3072, Activation::none},
                            {64, 768, 3072, Activation::none},  {64, 768, 3072, Activation::gelu},
                            {64, 3072, 768, Activation::none},  {1, 768, 50257, Activation::none},
                            {64, 768, 50257, Activation::none}};  // the last two come from memory, not from a cache
    for (const char* name : {"scalar", "avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-vnni-bf16", "amx"}) {
        const ingot::Kernels* set = ingot::kernels_of(name);
        if (set == nullptr || (only != "all" && only != name)) continue;
        for (const Shape& shape : shapes) time_linear(*set, shape, budget, limit);
        time_rows(*set, 64, 384, budget / 4);
        if (set->attention == nullptr) continue;
        time_attention(*set, 64, 128, 32, 12, budget);
        time_attention(*set, 128, 128, 32, 12, budget);
        time_attention(*set, 64, 128, 64, 12, budget);
        time_attention(*set, 1, 512, 64, 12, budget);
    }
    return 0;
}
