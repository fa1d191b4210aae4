// Decoders to test: random ones of every shape, fed through the C interface.
#pragma once
#include <algorithm>
#include <utility>

#include "engine_check.h"
#include "engine_model.h"

namespace {

using Ids = std::vector<int32_t>;
using Scores = std::vector<float>;
using Work = std::vector<std::pair<int64_t, Ids>>;

struct Decoder {
    Decoder(const RandomModel& model, int threads, const char* isa = nullptr, int32_t bits = 32,
            int64_t tokens = 1024) {
        const ingot_config config = model.config(threads, isa);
        code = ingot_decoder_create(&config, tokens, bits, &handle, error, sizeof error);
    }
    ~Decoder() { ingot_decoder_free(handle); }
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    int64_t open() {
        int64_t id = -1;
        code = ingot_sequence_open(handle, &id, error, sizeof error);
        return id;
    }
    int close(int64_t id) { return ingot_sequence_close(handle, id, error, sizeof error); }
    int trim(int64_t id, int64_t length) { return ingot_sequence_trim(handle, id, length, error, sizeof error); }
    int64_t length(int64_t id) {
        int64_t tokens = -1;
        ingot_sequence_length(handle, id, &tokens, error, sizeof error);
        return tokens;
    }

    Scores step(const Work& work, bool every = false) {
        Ids ids;
        std::vector<int64_t> offsets{0}, sequences;
        for (const auto& [id, tokens] : work) {
            ids.insert(ids.end(), tokens.begin(), tokens.end());
            offsets.push_back(int64_t(ids.size()));
            sequences.push_back(id);
        }
        Scores out((every ? ids.size() : work.size()) * size_t(ingot_decoder_width(handle)));
        code = ingot_decode(handle, ids.data(), int64_t(ids.size()), offsets.data(), sequences.data(),
                            int64_t(work.size()), every, out.data(), int64_t(out.size()), error, sizeof error);
        return out;
    }

    // Scores after every token of a sequence that is fed in pieces of these lengths, and then closed.
    Scores fed(const Ids& ids, const std::vector<int32_t>& cuts) {
        const int64_t id = open();
        Scores all;
        auto from = ids.begin();
        for (int32_t cut : cuts) {
            const Scores part = step({{id, Ids(from, from + cut)}}, true);
            all.insert(all.end(), part.begin(), part.end());
            from += cut;
        }
        close(id);
        return all;
    }

    ingot_decoder* handle = nullptr;
    int code = 0;
    char error[256] = "";
};

using Shape = RandomModel::Shape;

Shape gpt2() {
    Shape shape;
    shape.norm_first = 1, shape.causal = 1, shape.pool = 0, shape.embedding_norm = 0, shape.types = 0;
    shape.hidden = 64, shape.heads = shape.kv_heads = 4, shape.inner = 128, shape.vocab = 90, shape.positions = 400;
    shape.normalize = 0, shape.language = 1, shape.head = {90};
    return shape;
}

std::vector<Shape> shapes() {
    std::vector<Shape> all{gpt2()};
    Shape shape = gpt2();  // Llama: grouped heads, gated; rotary; root-mean-square norms; the table serves twice
    shape.position = 1, shape.norm = 1, shape.gated = 1, shape.kv_heads = 2, shape.head_dim = 20, shape.tied = 1;
    all.push_back(shape);
    shape.bits = 4, shape.eight = "up";
    all.push_back(shape);
    shape.eight = "qkv", shape.kv_heads = 1, shape.heads = 6, shape.window = 37, shape.head = {64, 90};
    all.push_back(shape);
    shape = gpt2();
    shape.bits = 4, shape.tied = 1, shape.head_dim = 24, shape.group = 32;
    all.push_back(shape);
    shape.bits = 16, shape.head_dim = 20, shape.eight = "down";
    all.push_back(shape);
    shape = gpt2();
    shape.bits = 16, shape.gated = 1, shape.position = 1, shape.norm = 1, shape.kv_heads = 2;
    all.push_back(shape);
    shape = gpt2();  // norms last, positions that begin late
    shape.norm_first = 0, shape.offset = 2, shape.embedding_norm = 1, shape.window = 5;
    all.push_back(shape);
    shape = gpt2();
    shape.layers = 1, shape.hidden = shape.heads = shape.kv_heads = shape.head_dim = shape.inner = 1;
    all.push_back(shape);
    return all;
}

Ids random_ids(size_t count, int32_t vocab, unsigned seed = 3) {
    std::mt19937 random(seed);
    Ids ids(count);
    for (int32_t& id : ids) id = int32_t(random() % unsigned(vocab));
    return ids;
}

std::vector<int32_t> random_cuts(int32_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<int32_t> cuts;
    while (count > 0) {
        cuts.push_back(std::min(count, int32_t(1 + random() % (random() % 3 ? 6 : 70))));
        count -= cuts.back();
    }
    return cuts;
}

bool is_finite(const Scores& scores) {
    return std::all_of(scores.begin(), scores.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace
