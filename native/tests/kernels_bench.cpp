// Times the kernels of every granted set on one thread: best of many repeats.
//
// Each linear is also given as a share of what the machine does with vpdpbusd on registers alone, measured here. Layers
// of a few rows read weights that no cache holds, and are given as a share of a plain read of as many bytes, which is
// timed between two of theirs.
#include <cstdio>
#include <string>

#include "kernels_fixture.h"
#include "peak.h"

using fixture::Aligned;
using fixture::Packed;
using fixture::Packed4;
using fixture::Random;
using peak::best_of;
using peak::seconds;

namespace {

// Reads bytes, and does nothing with them.
double read_all(const Aligned<uint64_t>& words) {
    uint64_t sums[8] = {};
    const double start = seconds();
    for (size_t i = 0; i + 8 <= words.size(); i += 8) {
        __builtin_prefetch(words.data() + i + 512);
        for (size_t j = 0; j < 8; ++j) sums[j] ^= words[i + j];
    }
    const double took = seconds() - start;
    volatile uint64_t kept = sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
    (void)kept;
    return took;
}

// Best times of `run` and of a plain read of `bytes`, in turns.
template <class Run>
void beside_a_read(const char* what, const ingot::Kernels& set, int32_t rows, size_t bytes, double budget, Run run) {
    const Aligned<uint64_t> words(bytes / 8);
    double best = 1e9, best_read = 1e9;
    run();
    for (const double end = seconds() + budget; seconds() < end;) {
        const double read = read_all(words), start = seconds();
        run();
        const double took = seconds() - start;
        best = took < best ? took : best;
        best_read = read < best_read ? read : best_read;
    }
    const double size = static_cast<double>(bytes);
    std::printf("%-17s %-28s %2d rows %6.1f MB %8.1f us %6.2f GB/s, a plain read %6.2f GB/s: %5.1f %% of it\n",
                set.name, what, rows, size / 1e6, best * 1e6, size / best / 1e9, size / best_read / 1e9,
                100.0 * best_read / best);
    std::fflush(stdout);
}

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

struct Groups {
    Groups(const ingot::Kernels& set, Random& random, int32_t rows, int32_t k, int32_t group)
        : x(random.floats(area(rows, k), -2.0f, 2.0f)), codes(area(rows, k)), scales(area(rows, k / group)),
          sums(area(rows, k / group)) {
        set.quantize_groups(x.data(), k, rows, k, group, rows8());
    }
    static size_t area(int32_t a, int32_t b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }
    ingot::Groups8 rows8() { return {codes.data(), scales.data(), sums.data()}; }
    std::vector<float> x;
    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> sums;
};

void time_linear4(const ingot::Kernels& set, int32_t rows, int32_t k, int32_t n, int32_t group, double budget,
                  double limit) {
    Random random(7);
    const Packed4 packed(random, n, k, group);
    Groups groups(set, random, rows, k, group);
    Aligned<float> out(Groups::area(rows, n));
    ingot::Linear4 job = {};
    job.x = groups.rows8();
    job.weights = &packed.weights();
    job.rows = rows, job.last = n, job.out = out.data(), job.ld_out = n;
    const double quantize = best_of(budget / 4, [&] {
        set.quantize_groups(groups.x.data(), k, rows, k, group, groups.rows8());
    });
    const double took = best_of(budget, [&] { set.linear4(job); });
    const double tops = 2.0 * rows * k * n / took / 1e12;
    std::printf("%-17s linear4 %3d x %4d x %5d k:%-3d %9.1f us %6.3f TOPS %5.1f %% of the peak; "
                "quantize_groups %6.1f us\n",
                set.name, rows, k, n, group, took * 1e6, tops, limit > 0 ? 100.0 * tops / limit : 0.0, quantize * 1e6);
    std::fflush(stdout);
}

// What a step of a few tokens does: read all weights once.
void time_few_rows(const ingot::Kernels& set, int32_t k, int32_t n, double budget) {
    Random random(9);
    const std::vector<float> x = random.floats(Groups::area(8, k), -2.0f, 2.0f);
    Aligned<float> out(Groups::area(8, n));
    {
        const Packed packed(random, n, k);
        Aligned<uint8_t> codes(Groups::area(8, packed.weights().k_pad));
        Aligned<float> scales(8);
        set.quantize_rows(x.data(), k, 8, k, packed.weights().k_pad, {codes.data(), scales.data()});
        const size_t bytes = Groups::area(packed.weights().n_pad, packed.weights().k_pad);
        for (const int32_t rows : {1, 2, 4, 8})
            beside_a_read("linear", set, rows, bytes, budget, [&] {
                set.linear({codes.data(), scales.data(), &packed.weights(), rows, 0, n, ingot::Activation::none,
                            nullptr, 0, nullptr, 0, out.data(), n});
            });
    }
    for (const int32_t group : {32, 128}) {
        const Packed4 packed(random, n, k, group);
        Groups groups(set, random, 8, k, group);
        const size_t bytes = Groups::area(packed.weights().n_pad, k / 2 + k / group * 2);
        for (const int32_t rows : {1, 2, 4, 8})
            beside_a_read(group == 32 ? "linear4 k:32" : "linear4 k:128", set, rows, bytes, budget, [&] {
                set.linear4({groups.rows8(), &packed.weights(), rows, 0, n, ingot::Activation::none, nullptr, 0,
                             nullptr, 0, out.data(), n});
            });
    }
}

// `heads` heads of keys, of one token or of many.
void time_pages(const ingot::Kernels& set, int32_t bits, int32_t rows, int32_t group, int32_t keys, double budget) {
    constexpr int32_t heads = 144, dim = 64;  // of twelve layers of twelve heads
    Random random(3);
    const ingot::Cache cache = {bits, dim};
    const size_t page = page_bytes(cache);
    const int32_t pages = (keys + ingot::kPage - 1) / ingot::kPage, columns = group * dim;
    Aligned<uint8_t> memory(static_cast<size_t>(heads) * static_cast<size_t>(pages) * page);
    std::vector<const uint8_t*> table;
    for (size_t at = 0; at < memory.size(); at += page) table.push_back(memory.data() + at);
    const std::vector<float> token = random.floats(static_cast<size_t>(dim), -1.0f, 1.0f);
    for (size_t at = 0; at < memory.size(); at += page)
        for (int32_t slot = 0; slot < ingot::kPage; ++slot)
            set.store_page(cache, token.data(), token.data(), memory.data() + at, slot);
    const std::vector<float> q = random.floats(Groups::area(rows, columns), -1.0f, 1.0f);
    std::vector<float> out(q.size());
    Aligned<uint8_t> scratch(set.paged_scratch(cache, rows, group, keys));
    const std::string what = "pages " + std::to_string(bits) + " bits, group " + std::to_string(group);
    beside_a_read(what.c_str(), set, rows, memory.size(), budget, [&] {
        for (int32_t h = 0; h < heads; ++h)
            set.paged_attention({cache, q.data(), columns, out.data(), columns, table.data() + h * pages, rows, group,
                                 keys - rows, 0, 0.125f, scratch.data()});
    });
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

void time_encoder(const ingot::Kernels& set, double budget, double limit) {
    using ingot::Activation;
    const Shape shapes[] = {{64, 384, 1152, Activation::none},  {64, 384, 1536, Activation::none},
                            {64, 384, 1536, Activation::gelu},  {64, 1536, 384, Activation::none},
                            {64, 384, 384, Activation::none},   {16, 384, 1536, Activation::none},
                            {16, 384, 1536, Activation::gelu},  {4, 384, 1536, Activation::none},
                            {8, 384, 1536, Activation::none},   {1, 768, 3072, Activation::none},
                            {64, 768, 3072, Activation::none},  {64, 768, 3072, Activation::gelu},
                            {64, 3072, 768, Activation::none},  {1, 768, 50257, Activation::none},
                            {64, 768, 50257, Activation::none}};  // the last two come from memory, not from a cache
    for (const Shape& shape : shapes) time_linear(set, shape, budget, limit);
    time_rows(set, 64, 384, budget / 4);
    time_attention(set, 64, 128, 32, 12, budget);
    time_attention(set, 128, 128, 32, 12, budget);
    time_attention(set, 64, 128, 64, 12, budget);
    time_attention(set, 1, 512, 64, 12, budget);
}

void time_decoder(const ingot::Kernels& set, double budget, double limit) {
    for (const int32_t group : {32, 128}) {
        time_linear4(set, 64, 768, 3072, group, budget, limit);
        time_linear4(set, 64, 3072, 768, group, budget, limit);
    }
    time_few_rows(set, 768, 131072, budget);
    time_few_rows(set, 3072, 32768, budget);
    for (const int32_t bits : {32, 8}) {
        time_pages(set, bits, 1, 1, 512, budget);
        time_pages(set, bits, 1, 4, 512, budget);
        time_pages(set, bits, 64, 1, 512, budget);
    }
}

}  // namespace

// kernels_bench [set] [seconds per shape] [encoder or decoder]
int main(int argc, char** argv) {
    const std::string only = argc > 1 ? argv[1] : "all";
    const double budget = argc > 2 ? std::atof(argv[2]) : 0.3;
    const std::string part = argc > 3 ? argv[3] : "both";
    const double limit = ingot::kernels_of("avx512-vnni") ? peak::tops() : 0.0;
    std::printf("peak of vpdpbusd on registers: %.3f TOPS\n", limit);
    for (const char* name : {"scalar", "avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-vnni-bf16", "amx"}) {
        const ingot::Kernels* set = ingot::kernels_of(name);
        if (set == nullptr || (only != "all" && only != name)) continue;
        if (part != "decoder") time_encoder(*set, budget, limit);
        if (part != "encoder") time_decoder(*set, budget, limit);
    }
    return 0;
}
