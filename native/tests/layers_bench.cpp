// What each matrix of a known encoder does of the machine's peak, inside the engine's own forward pass.
//   layers_bench [set] [seconds per case]
// Prints lines of: network, batch, part, threads, operations of a call (multiplications and additions), seconds of a
// call, bytes of weights. First the peak: `peak` and 1e12 operations per second of one thread on registers alone.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "engine_model.h"
#include "peak.h"
#include "transformer.h"

namespace {

const ingot::Kernels* inner;
std::map<const void*, double> spent;  // by the codes of a matrix; one thread runs
double attention_spent;

ingot::Kernels with_clocks(const ingot::Kernels& kernels) {
    inner = &kernels;
    ingot::Kernels clocked = kernels;
    clocked.linear = [](const ingot::Linear& job) {
        double& sum = spent[job.weights->codes];
        const double start = peak::seconds();
        inner->linear(job);
        sum += peak::seconds() - start;
    };
    clocked.attention = [](const ingot::Attention& job) {
        const double start = peak::seconds();
        inner->attention(job);
        attention_spent += peak::seconds() - start;
    };
    return clocked;
}

struct Case {
    const char *network, *batch;
    int32_t sequences, length;
};

void print(const Case& at, const char* part, int threads, double operations, double seconds, double bytes) {
    std::printf("%s\t%s\t%s\t%d\t%.6g\t%.6g\t%.6g\n", at.network, at.batch, part, threads, operations, seconds, bytes);
    std::fflush(stdout);
}

void measure(const Case& at, const RandomModel& model, const ingot::Kernels& kernels, double budget) {
    const RandomModel::Shape& shape = model.shape;
    const RandomBatch random(std::vector<int32_t>(size_t(at.sequences), at.length), shape.vocab);
    const ingot::Batch batch{random.ids.data(), nullptr, random.offsets.data(), random.sequences()};
    std::vector<float> out(size_t(random.tokens()) * size_t(shape.hidden));
    const auto load = [&] { return ingot::checked_model(model.spec, model.tensors.data(), model.tensors.size()); };

    const ingot::Kernels clocked = with_clocks(kernels);
    ingot::Transformer watched(load(), clocked, 1);
    watched.run(batch, out.data());
    std::map<std::string, std::vector<double>> times;  // of a part, summed over the layers, by call
    const double start = peak::seconds();
    for (int call = 0; call < 3 || peak::seconds() - start < budget; ++call) {
        spent.clear(), attention_spent = 0;
        watched.run(batch, out.data());
        std::map<std::string, double> sums;
        for (const ingot_tensor& tensor : model.tensors) {
            const std::string name = tensor.name;
            const auto found = spent.find(tensor.data);
            if (found != spent.end()) sums[name.substr(name.find('.', 7) + 1)] += found->second;
        }
        sums["attention"] = attention_spent;
        for (const auto& part : sums) times[part.first].push_back(part.second);
    }
    const double rows = double(random.tokens()), hidden = shape.hidden, q = double(shape.heads) * shape.head_dim;
    const std::map<std::string, double> sizes = {{"qkv.codes", 3 * q * hidden}, {"o.codes", q * hidden},
                                                 {"up.codes", hidden * shape.inner},
                                                 {"down.codes", hidden * shape.inner}};
    double products = 0, bytes = 0;
    for (auto& part : times) {
        std::sort(part.second.begin(), part.second.end());
        const double middle = part.second[part.second.size() / 2];
        const auto size = sizes.find(part.first);
        if (size == sizes.end()) {
            print(at, part.first.c_str(), 1, 4.0 * rows * at.length * q * shape.layers, middle, 0);
            continue;
        }
        const double operations = 2 * rows * size->second * shape.layers;
        products += operations, bytes += size->second * shape.layers;
        print(at, part.first.substr(0, part.first.find('.')).c_str(), 1, operations, middle, size->second * shape.layers);
    }
    for (const int threads : {1, 0}) {
        ingot::Transformer plain(load(), kernels, threads);
        std::vector<double> calls;
        for (const double begin = peak::seconds(); calls.size() < 5 || peak::seconds() - begin < budget;) {
            const double before = peak::seconds();
            plain.run(batch, out.data());
            calls.push_back(peak::seconds() - before);
        }
        std::sort(calls.begin(), calls.end());
        print(at, "whole", plain.threads(), products, calls[calls.size() / 2], bytes);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const ingot::Kernels* kernels = argc > 1 ? ingot::kernels_of(argv[1]) : ingot::best_kernels();
    const double budget = argc > 2 ? std::atof(argv[2]) : 1.0;
    if (kernels == nullptr) return std::printf("%s is not granted here\n", argv[1]), 1;
    std::printf("peak\t%s\t%.6g\n", kernels->name, ingot::kernels_of("avx512-vnni") ? peak::tops() : 0.0);
    RandomModel::Shape minilm;
    minilm.layers = 6, minilm.hidden = 384, minilm.heads = minilm.kv_heads = 12, minilm.head_dim = 32;
    minilm.inner = 1536, minilm.vocab = 30522, minilm.positions = 512;
    RandomModel::Shape bert = minilm;
    bert.layers = 12, bert.hidden = 768, bert.head_dim = 64, bert.inner = 3072;
    const RandomModel small(minilm), base(bert);
    measure({"MiniLM", "1 x 32", 1, 32}, small, *kernels, budget);
    measure({"MiniLM", "1 x 128", 1, 128}, small, *kernels, budget);
    measure({"BERT-base shape", "1 x 128", 1, 128}, base, *kernels, budget);
    measure({"BERT-base shape", "32 x 128", 32, 128}, base, *kernels, 3 * budget);
    return 0;
}
