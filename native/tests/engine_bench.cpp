// How long a random encoder of a known shape takes, and which part of it the linear layers are.
//   engine_bench [threads] [set] [seconds per case]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>

#include "engine_model.h"
#include "transformer.h"

namespace {

using Clock = std::chrono::steady_clock;

// Time in kernels, per thread. The table is the set's own with a clock around each entry.
enum Part { kLinear, kQuantize, kAttention, kNorm, kRotate, kParts };
thread_local double spent[kParts];
double total[kParts];
const ingot::Kernels* inner;

template <Part part, class Call>
void timed(Call call) {
    const auto start = Clock::now();
    call();
    spent[part] += std::chrono::duration<double>(Clock::now() - start).count();
    total[part] = spent[part];
}

// Counts of the calling thread (worker 0) alone are printed: it does its share of every part.
ingot::Kernels with_clocks(const ingot::Kernels& kernels) {
    inner = &kernels;
    ingot::Kernels clocked = kernels;
    clocked.linear = [](const ingot::Linear& job) { timed<kLinear>([&] { inner->linear(job); }); };
    clocked.quantize_rows = [](const float* x, int64_t ld, int32_t rows, int32_t k, int32_t k_pad, ingot::Rows8 out) {
        timed<kQuantize>([&] { inner->quantize_rows(x, ld, rows, k, k_pad, out); });
    };
    clocked.attention = [](const ingot::Attention& job) { timed<kAttention>([&] { inner->attention(job); }); };
    clocked.layer_norm = [](const float* x, int64_t ld_x, int32_t rows, int32_t n, const float* weight,
                            const float* bias, float epsilon, float* y, int64_t ld_y) {
        timed<kNorm>([&] { inner->layer_norm(x, ld_x, rows, n, weight, bias, epsilon, y, ld_y); });
    };
    return clocked;
}

double percentile(std::vector<double> times, double at) {
    std::sort(times.begin(), times.end());
    return times[size_t(at * double(times.size() - 1))];
}

std::vector<double> times_of(const std::function<void()>& call, double seconds) {
    for (int i = 0; i < 3; ++i) call();
    std::vector<double> times;
    for (double sum = 0; sum < seconds;) {
        const auto start = Clock::now();
        call();
        times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
        sum += times.back();
    }
    return times;
}

void measure(const char* name, const RandomModel& model, const std::vector<int32_t>& lengths, int threads,
             const ingot::Kernels& kernels, double seconds) {
    const RandomBatch random(lengths, model.shape.vocab);
    const ingot::Batch batch{random.ids.data(), nullptr, random.offsets.data(), random.sequences()};
    std::vector<float> out(size_t(std::max(random.sequences(), random.tokens())) * size_t(model.shape.hidden));
    const auto load = [&] { return ingot::checked_model(model.spec, model.tensors.data(), model.tensors.size()); };
    ingot::Transformer plain(load(), kernels, threads);
    const std::vector<double> times = times_of([&] { plain.run(batch, out.data()); }, seconds);
    const ingot::Kernels clocked = with_clocks(kernels);
    ingot::Transformer watched(load(), clocked, threads);
    std::fill(std::begin(spent), std::end(spent), 0.0);
    const std::vector<double> clocked_times = times_of([&] { watched.run(batch, out.data()); }, seconds);
    double sum = 0;
    for (double time : clocked_times) sum += time;
    sum *= double(clocked_times.size() + 3) / double(clocked_times.size());
    const auto share = [&](Part part) { return 100 * spent[part] / sum; };
    const RandomModel::Shape& shape = model.shape;
    const double macs = double(random.tokens()) * shape.layers * shape.hidden *
                        ((shape.heads + 2.0 * shape.kv_heads + shape.heads) * shape.head_dim + 2.0 * shape.inner);
    const double best = percentile(times, 0.1);
    std::printf("%-18s p10 %8.3f p50 %8.3f ms  %6.0f sequences/s  %5.2f TOPS | linear %4.1f%% quantize %4.1f%% "
                "attention %4.1f%% norm %4.1f%% rest %4.1f%%\n",
                name, 1e3 * best, 1e3 * percentile(times, 0.5), double(lengths.size()) / percentile(times, 0.5),
                2e-12 * macs / best, share(kLinear), share(kQuantize), share(kAttention), share(kNorm),
                100 - share(kLinear) - share(kQuantize) - share(kAttention) - share(kNorm));
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
    const ingot::Kernels* kernels = argc > 2 ? ingot::kernels_of(argv[2]) : ingot::best_kernels();
    const double seconds = argc > 3 ? std::atof(argv[3]) : 0.5;
    if (kernels == nullptr) return std::printf("%s is not granted here\n", argv[2]), 1;
    RandomModel::Shape minilm;
    minilm.layers = 6, minilm.hidden = 384, minilm.heads = minilm.kv_heads = 12, minilm.head_dim = 32;
    minilm.inner = 1536, minilm.vocab = 30522, minilm.positions = 512;
    const RandomModel model(minilm);
    std::printf("MiniLM shape, %s, %d threads\n", kernels->name, threads);
    measure("b1 x 128", model, {128}, threads, *kernels, seconds);
    measure("b1 x 32", model, {32}, threads, *kernels, seconds);
    measure("b1 x 14", model, {14}, threads, *kernels, seconds);
    measure("b32 x 128", model, std::vector<int32_t>(32, 128), threads, *kernels, seconds);
    std::vector<int32_t> text;
    for (int i = 0; i < 256; ++i) text.push_back(7 + i * 7919 % 15);
    measure("256 x 7..21", model, text, threads, *kernels, seconds);
    return 0;
}
