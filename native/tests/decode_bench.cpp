// How fast a random decoder of GPT-2's small shape reads a prompt and gives tokens.
//   decode_bench [threads] [set] [seconds per case] [context]
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "engine_model.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Decoding {
    Decoding(const RandomModel& model, int threads, const char* isa, int32_t cache_bits) : vocab(model.shape.vocab) {
        const ingot_config config = model.config(threads, isa);
        char error[256];
        if (ingot_decoder_create(&config, 8192, cache_bits, &decoder, error, sizeof error) != INGOT_OK) {
            std::printf("%s\n", error);
            std::exit(1);
        }
    }
    ~Decoding() { ingot_decoder_free(decoder); }
    Decoding(const Decoding&) = delete;
    Decoding& operator=(const Decoding&) = delete;

    int64_t open() {
        int64_t id = 0;
        ingot_sequence_open(decoder, &id, nullptr, 0);
        return id;
    }

    // Seconds of a step in which each sequence gains `tokens` tokens.
    double step(const std::vector<int64_t>& sequences, int32_t tokens) {
        const size_t n = sequences.size();
        ids.resize(n * size_t(tokens));
        for (int32_t& id : ids) id = int32_t(random() % unsigned(vocab));
        offsets.resize(n + 1);
        for (size_t i = 0; i <= n; ++i) offsets[i] = int64_t(i) * tokens;
        out.resize(n * size_t(vocab));
        const auto start = Clock::now();
        const int code = ingot_decode(decoder, ids.data(), int64_t(ids.size()), offsets.data(), sequences.data(),
                                      int64_t(n), 0, out.data(), int64_t(out.size()), nullptr, 0);
        if (code != INGOT_OK) std::exit(1);
        return std::chrono::duration<double>(Clock::now() - start).count();
    }

    int32_t vocab;
    ingot_decoder* decoder = nullptr;
    std::mt19937 random{1};
    std::vector<int32_t> ids;
    std::vector<int64_t> offsets;
    std::vector<float> out;
};

double percentile(std::vector<double> times, double at) {
    std::sort(times.begin(), times.end());
    return times[size_t(at * double(times.size() - 1))];
}

// Steps of one token each after a prompt of `context` tokens, which is given again when it has doubled.
void measure_decoding(Decoding& decoding, size_t together, int32_t context, double seconds) {
    std::vector<int64_t> sequences;
    for (size_t i = 0; i < together; ++i) sequences.push_back(decoding.open());
    decoding.step(sequences, context);
    std::vector<double> times;
    int64_t length = context;
    for (double sum = 0; sum < seconds; sum += times.back(), ++length) {
        if (length >= 2 * context) {
            for (int64_t id : sequences) ingot_sequence_trim(decoding.decoder, id, context, nullptr, 0);
            length = context;
        }
        times.push_back(decoding.step(sequences, 1));
    }
    for (int64_t id : sequences) ingot_sequence_close(decoding.decoder, id, nullptr, 0);
    const double middle = percentile(times, 0.5);
    std::printf("  decode %zu: p10 %7.3f p50 %7.3f ms/step  %7.1f tokens/s\n", together, 1e3 * percentile(times, 0.1),
                1e3 * middle, double(together) / middle);
}

void measure_prompts(Decoding& decoding, int32_t tokens, double seconds) {
    std::vector<double> times;
    const std::vector<int64_t> sequence{decoding.open()};
    for (double sum = 0; sum < seconds; sum += times.back()) {
        ingot_sequence_trim(decoding.decoder, sequence[0], 0, nullptr, 0);
        times.push_back(decoding.step(sequence, tokens));
    }
    ingot_sequence_close(decoding.decoder, sequence[0], nullptr, 0);
    const double middle = percentile(times, 0.5);
    std::printf("  prompt of %d: p10 %7.2f p50 %7.2f ms  %7.0f tokens/s\n", tokens, 1e3 * percentile(times, 0.1),
                1e3 * middle, tokens / middle);
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
    const char* isa = argc > 2 && std::strcmp(argv[2], "best") != 0 ? argv[2] : nullptr;
    const double seconds = argc > 3 ? std::atof(argv[3]) : 0.5;
    const int32_t context = argc > 4 ? std::atoi(argv[4]) : 64;
    RandomModel::Shape shape;
    shape.layers = 12, shape.hidden = 768, shape.heads = shape.kv_heads = 12, shape.head_dim = 64, shape.inner = 3072;
    shape.vocab = 50257, shape.positions = 1024, shape.norm_first = shape.causal = 1, shape.pool = 0;
    shape.embedding_norm = shape.types = shape.normalize = 0, shape.language = shape.tied = 1, shape.head = {50257};
    for (int32_t bits : {8, 4}) {
        shape.bits = bits;
        const RandomModel model(shape);
        double size_bytes = 0;
        for (const ingot_tensor& tensor : model.tensors) {
            if (std::strcmp(tensor.name, "embed.positions") != 0) size_bytes += double(tensor.size_bytes);
        }
        for (int32_t cache_bits : {32, 8}) {
            Decoding decoding(model, threads, isa, cache_bits);
            std::printf("GPT-2 small, %d bits, %.0f MB per token, cache of %d bits, %s, %d threads\n", bits,
                        1e-6 * size_bytes, cache_bits, ingot_decoder_isa(decoding.decoder),
                        ingot_decoder_threads(decoding.decoder));
            for (size_t together : {1, 4, 8}) measure_decoding(decoding, together, context, seconds);
            for (int32_t tokens : {16, 128, 512}) measure_prompts(decoding, tokens, seconds);
        }
    }
    return 0;
}
