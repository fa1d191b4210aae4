// Decoders through the C interface, without Python: the program that the sanitizers watch.
#include <algorithm>
#include <cmath>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "decoder_fixture.h"

namespace {

Scores encoded(const RandomModel& model, const Ids& ids, const char* isa) {
    ingot_encoder* encoder = nullptr;
    const ingot_config config = model.config(1, isa);
    char error[256];
    check(ingot_create(&config, &encoder, error, sizeof error) == INGOT_OK, error);
    Scores out(ids.size() * size_t(ingot_width(encoder)));
    const int64_t offsets[] = {0, int64_t(ids.size())};
    ingot_run(encoder, ids.data(), nullptr, int64_t(ids.size()), offsets, 1, out.data(), int64_t(out.size()), error,
              sizeof error);
    ingot_free(encoder);
    return out;
}

// A long prompt: several chunks, several pages.
void scores_depend_on_the_sequence_alone(const RandomModel& model, const std::string& name, const char* isa,
                                         int32_t bits) {
    const Ids ids = random_ids(310, model.shape.vocab);
    const int32_t count = int32_t(ids.size());
    Decoder one(model, 1, isa, bits), two(model, 2, isa, bits);
    const Scores want = one.fed(ids, {count});
    check(one.code == INGOT_OK && is_finite(want), name + " runs: " + one.error);
    check(one.fed(ids, std::vector<int32_t>(size_t(count), 1)) == want, name + ": token by token");
    check(two.fed(ids, {count}) == want, name + ": two threads");
    for (unsigned seed = 1; seed <= 3; ++seed) {
        check(two.fed(ids, random_cuts(count, seed)) == want, name + ": random cuts");
    }
    const size_t vocab = want.size() / ids.size();
    const int64_t id = two.open(), a = two.open(), b = two.open(), c = two.open();
    two.step({{c, random_ids(7, model.shape.vocab, 9)}});
    bool same = true;
    size_t done = 0;
    for (int32_t cut : {1, 60, 2, 200, 47}) {  // among prompts and tokens of others
        const Ids mine(ids.begin() + int64_t(done), ids.begin() + int64_t(done) + cut);
        const Scores got = two.step({{a, random_ids(11, model.shape.vocab, 5)}, {id, mine}, {c, {1}}, {b, {2, 3}}});
        done += size_t(cut);
        same = same && std::equal(want.begin() + int64_t((done - 1) * vocab), want.begin() + int64_t(done * vocab),
                                  got.begin() + int64_t(vocab));
    }
    check(same, name + ": among others, and the last scores alone");
    check(two.trim(id, 33) == INGOT_OK && two.length(id) == 33, name + ": trims");
    const Scores again = two.step({{id, Ids(ids.begin() + 33, ids.end())}}, true);
    check(std::equal(again.begin(), again.end(), want.begin() + int64_t(33 * vocab)), name + ": trimmed and fed again");
}

void every_shape_and_set() {
    int number = 0;
    for (const Shape& shape : shapes()) {
        const RandomModel model(shape);
        const Ids ids = random_ids(310, shape.vocab);
        for (const std::string& isa : granted()) {
            const std::string name = isa + ", shape " + std::to_string(number);
            scores_depend_on_the_sequence_alone(model, name, isa.c_str(), 32);
            scores_depend_on_the_sequence_alone(model, name + ", eight bits kept", isa.c_str(), 8);
            Decoder whole(model, 2, isa.c_str()), rounded(model, 2, isa.c_str(), 8);
            const Scores got = whole.fed(ids, {310});
            const bool is_rough = isa == "amx" || isa.find("bf16") != std::string::npos;  // attention of encoders
            const double likeness = cosine(got, encoded(model, ids, isa.c_str()));
            check(likeness >= (is_rough ? 0.999 : 0.9999), name + ": like the encoder, " + std::to_string(likeness));
            const double nearness = cosine(got, rounded.fed(ids, {310}));
            check(nearness >= 0.999, name + ": eight bits are near floats, " + std::to_string(nearness));
        }
        ++number;
    }
}

// A token whose keys and values are not finite fills pages, which others get after it.
void used_pages_are_as_good_as_new() {
    Shape shape = gpt2();
    shape.poison = 7;
    const RandomModel model(shape);
    Ids ids = random_ids(100, shape.vocab);
    std::replace(ids.begin(), ids.end(), 7, 8);
    for (const std::string& isa : granted()) {
        for (int32_t bits : {32, 8}) {
            Decoder fresh(model, 2, isa.c_str(), bits), used(model, 2, isa.c_str(), bits, 160);
            const Scores want = fresh.fed(ids, {100});
            check(!is_finite(used.fed(Ids(160, 7), {160})), "the poison works");
            check(used.fed(ids, {100}) == want, isa + ": pages of a closed sequence");
            const int64_t id = used.open();
            used.step({{id, Ids(100, 7)}});
            used.trim(id, 0);
            check(used.step({{id, ids}}, true) == want, isa + ": pages of its own, trimmed");
        }
    }
}

struct Life {
    int64_t id;
    size_t text, length;
};

// Part of a step: what a sequence gains, and the scores that must come of it.
void live_on(const Life& life, size_t count, const std::vector<Ids>& texts, const std::vector<Scores>& wants,
             Work& work, Scores& want) {
    const auto from = texts[life.text].begin() + int64_t(life.length);
    work.push_back({life.id, Ids(from, from + int64_t(count))});
    const size_t vocab = wants[life.text].size() / texts[life.text].size();
    const auto last = wants[life.text].begin() + int64_t((life.length + count - 1) * vocab);
    want.insert(want.end(), last, last + int64_t(vocab));
}

// Sequences that come, go, are trimmed and run out of pages, as a server has them.
void random_lives_give_the_scores_of_quiet_ones(const Shape& shape, int32_t bits) {
    const RandomModel model(shape);
    std::vector<Ids> texts;
    std::vector<Scores> wants;
    Decoder quiet(model, 1, nullptr, bits), busy(model, 2, nullptr, bits, 480);
    for (unsigned seed = 1; seed <= 4; ++seed) {
        texts.push_back(random_ids(200, shape.vocab, seed));
        wants.push_back(quiet.fed(texts.back(), {200}));
    }
    std::mt19937 random(bits);
    std::vector<Life> lives;
    int wrong = 0, refused = 0;
    for (int n = 0; n < 300; ++n) {
        if (lives.size() < 7) lives.push_back({busy.open(), random() % texts.size(), 0});
        Work work;
        Scores want;
        std::vector<size_t> gains(lives.size());
        for (size_t i = 0; i < lives.size(); ++i) {
            if (random() % 4 == 0 || lives[i].length == 200) continue;
            gains[i] = std::min(200 - lives[i].length, size_t(1 + random() % (random() % 4 ? 1 : 90)));
            live_on(lives[i], gains[i], texts, wants, work, want);
        }
        const Scores got = busy.step(work);
        const bool is_full = busy.code == INGOT_CACHE_FULL;
        refused += is_full;
        wrong += !is_full && (busy.code != INGOT_OK || got != want);
        for (size_t i = 0; i < lives.size(); ++i) {
            if (!is_full) lives[i].length += gains[i];
            wrong += busy.length(lives[i].id) != int64_t(lives[i].length);
        }
        Life& chosen = lives[random() % lives.size()];
        if (is_full || random() % 9 == 0) {
            wrong += busy.close(chosen.id) != INGOT_OK;
            std::swap(chosen, lives.back());
            lives.pop_back();
        } else if (random() % 5 == 0) {
            chosen.length = random() % (chosen.length + 1);
            wrong += busy.trim(chosen.id, int64_t(chosen.length)) != INGOT_OK;
        }
    }
    for (const Life& life : lives) busy.close(life.id);
    check(wrong == 0 && refused > 3, "random lives: " + std::to_string(wrong) + " wrong, " + std::to_string(refused));
    check(ingot_free_tokens(busy.handle) == 480, "random lives: all pages come back");
}

void bad_steps_are_refused_and_change_nothing() {
    const RandomModel model(gpt2());
    Decoder decoder(model, 2, nullptr, 32, 96);
    const Ids ids = random_ids(200, 90);
    const int64_t id = decoder.open(), other = decoder.open(), gone = decoder.open();
    check(decoder.close(gone) == INGOT_OK && decoder.close(gone) == INGOT_BAD_INPUT, "closing twice");
    const Scores want = decoder.step({{id, Ids(ids.begin(), ids.begin() + 40)}});
    const auto refused = [&](const Work& work, int code, const char* what) {
        const int64_t free_before = ingot_free_tokens(decoder.handle);
        decoder.step(work);
        check(decoder.code == code && decoder.error[0] != 0, std::string(what) + ": " + decoder.error);
        check(decoder.length(id) == 40 && decoder.length(other) == 0, std::string(what) + " changes no length");
        check(ingot_free_tokens(decoder.handle) == free_before, std::string(what) + " takes no page");
    };
    check(ingot_free_tokens(decoder.handle) == 32, "two of three pages are taken");
    refused({{other, Ids(33, 1)}}, INGOT_CACHE_FULL, "no room");
    refused({{id, Ids(25, 1)}, {other, {1}}}, INGOT_CACHE_FULL, "no room for both");
    refused({{id, Ids(361, 1)}}, INGOT_BAD_INPUT, "over the positions");
    refused({{other, {1}}, {id, {1, 90}}}, INGOT_BAD_INPUT, "an id beyond the vocabulary");
    refused({{other, {1}}, {id, {-1}}}, INGOT_BAD_INPUT, "a negative id");
    refused({{other, {1}}, {id, {1}}, {other, {2}}}, INGOT_BAD_INPUT, "a sequence twice");
    refused({{other, {1}}, {gone, {1}}}, INGOT_BAD_INPUT, "a closed sequence");
    refused({{other, {1}}, {INT64_MIN, {1}}}, INGOT_BAD_INPUT, "a sequence that never was");
    refused({{other, {}}, {id, {1}}}, INGOT_BAD_INPUT, "no tokens");
    check(decoder.trim(id, 41) == INGOT_BAD_INPUT && decoder.trim(id, -1) == INGOT_BAD_INPUT, "trimmed to more");
    decoder.step({});
    check(decoder.code == INGOT_OK, "nothing at all");
    Decoder fresh(model, 1);
    const Scores all = fresh.fed(ids, {200});
    check(decoder.step({{id, Ids(ids.begin() + 40, ids.begin() + 41)}}) ==
              Scores(all.begin() + 40 * 90, all.begin() + 41 * 90),
          "a refused decoder goes on");
    check(decoder.trim(id, 32) == INGOT_OK && ingot_free_tokens(decoder.handle) == 64, "trimmed pages come back");
    check(decoder.close(id) == INGOT_OK && ingot_free_tokens(decoder.handle) == 96, "all pages come back");
}

void bad_calls_are_refused() {
    const RandomModel model(gpt2());
    Decoder decoder(model, 1);
    const int64_t id = decoder.open();
    char* const error = decoder.error;
    const size_t room = sizeof decoder.error;
    const int32_t ids[] = {1, 2};
    float out[90];
    const auto decode = [&](const int32_t* tokens, std::vector<int64_t> offsets, const int64_t* sequences, float* to,
                            int64_t floats) {
        return ingot_decode(decoder.handle, tokens, 2, offsets.data(), sequences, 1, 0, to, floats, error, room);
    };
    check(decode(ids, {0, 2}, &id, out, 89) == INGOT_BAD_INPUT, "no room for the answer");
    check(decode(ids, {0, 1}, &id, out, 90) == INGOT_BAD_INPUT, "offsets end too early");
    check(decode(ids, {0, INT64_MAX}, &id, out, 90) == INGOT_BAD_INPUT, "a huge offset");
    check(decode(ids, {1, 2}, &id, out, 90) == INGOT_BAD_INPUT, "offsets that begin late");
    const int64_t twice[] = {0, 2};
    check(ingot_decode(decoder.handle, ids, 2, twice, &id, -1, 0, out, 90, error, room) == INGOT_BAD_INPUT,
          "a negative count of sequences");
    check(ingot_decode(decoder.handle, ids, -1, twice, &id, 1, 0, out, 90, error, room) == INGOT_BAD_INPUT,
          "a negative count of ids");
    check(decode(nullptr, {0, 2}, &id, out, 90) == INGOT_BAD_CALL, "no ids");
    check(decode(ids, {0, 2}, nullptr, out, 90) == INGOT_BAD_CALL, "no sequences");
    check(decode(ids, {0, 2}, &id, nullptr, 90) == INGOT_BAD_CALL, "no room");
    check(ingot_decode(decoder.handle, ids, 2, nullptr, &id, 1, 0, out, 90, error, room) == INGOT_BAD_CALL, "offsets");
    check(ingot_decode(nullptr, ids, 2, nullptr, &id, 1, 0, out, 90, nullptr, 0) == INGOT_BAD_CALL, "no decoder");
    check(decode(ids, {0, 2}, &id, out, 90) == INGOT_OK, "a good call works");
    check(ingot_sequence_open(decoder.handle, nullptr, error, room) == INGOT_BAD_CALL, "no place for the number");
    check(ingot_sequence_length(decoder.handle, id, nullptr, error, room) == INGOT_BAD_CALL, "nor for the length");
    check(ingot_sequence_open(nullptr, nullptr, error, room) == INGOT_BAD_CALL, "nor a decoder");
    check(ingot_free_tokens(nullptr) == 0 && ingot_decoder_width(nullptr) == 0, "a null has nothing");
    ingot_decoder_free(nullptr);
}

void other_transformers_are_refused() {
    const auto refused = [](const Shape& shape, int32_t bits, int64_t tokens, const std::string& text) {
        const RandomModel model(shape);
        const Decoder decoder(model, 1, nullptr, bits, tokens);
        const bool says = std::string(decoder.error).find(text) != std::string::npos;
        check(decoder.handle == nullptr && decoder.code != INGOT_OK && says, text + ": " + decoder.error);
    };
    Shape shape = gpt2();
    shape.causal = 0;
    refused(shape, 32, 64, "must be causal");
    shape = gpt2(), shape.pool = 1;
    refused(shape, 32, 64, "scores of the vocabulary");
    shape = gpt2(), shape.language = 0, shape.head.clear();
    refused(shape, 32, 64, "scores of the vocabulary");
    shape = gpt2(), shape.position = 2;
    refused(shape, 32, 64, "positions");
    shape = gpt2(), shape.normalize = 1;
    refused(shape, 32, 64, "not divided");
    refused(gpt2(), 16, 64, "cache_bits must be 32 or 8");
    refused(gpt2(), 32, 0, "cache_tokens must be between");
    refused(gpt2(), 32, INT64_MAX, "cache_tokens must be between");
    refused(gpt2(), 32, int64_t(1) << 40, "memory");
}

void bad_tensors_are_refused() {
    Shape shape = gpt2();
    shape.bits = 4, shape.tied = 1;
    const RandomModel good(shape);
    for (size_t i = 0; i < good.tensors.size(); ++i) {
        RandomModel model(shape);
        model.tensors[i].size_bytes += 64;
        const Decoder larger(model, 1);
        check(larger.code == INGOT_BAD_TENSOR, std::string("a larger ") + good.tensors[i].name);
        model.tensors.erase(model.tensors.begin() + int64_t(i));
        const Decoder missing(model, 1);
        const bool is_optional = std::strstr(good.tensors[i].name, "norm.bias") != nullptr;
        check((missing.code == INGOT_OK) == is_optional, std::string("a missing ") + good.tensors[i].name);
        if (std::strstr(good.tensors[i].name, ".ratios") == nullptr) continue;
        const RandomModel hostile(shape);
        static_cast<uint16_t*>(const_cast<void*>(hostile.tensors[i].data))[3] = 0x7c00;
        check(Decoder(hostile, 1).code == INGOT_BAD_TENSOR, "an infinite ratio");
    }
}

void steps_allocate_once() {
    const RandomModel model(gpt2());
    Decoder decoder(model, 2);
    const int64_t id = decoder.open();
    decoder.step({{id, Ids(33, 1)}});
    const int32_t token = 5;
    const int64_t offsets[] = {0, 1};
    float out[90];
    const int64_t before = allocations;
    for (int i = 0; i < 100; ++i) {
        ingot_decode(decoder.handle, &token, 1, offsets, &id, 1, 0, out, 90, decoder.error, sizeof decoder.error);
    }
    const int64_t made = allocations - before;
    check(made == 0, "steps allocate nothing; made " + std::to_string(made));
    check(decoder.length(id) == 133, "a hundred tokens");
}

void callers_wait_for_one_another() {
    const RandomModel model(gpt2());
    const Ids ids = random_ids(60, 90);
    Decoder decoder(model, 2, nullptr, 32, 4 * 64);
    const Scores want = decoder.fed(ids, {60});
    std::vector<int> wrong(4);
    std::vector<std::thread> callers;
    for (size_t i = 0; i < wrong.size(); ++i) {
        callers.emplace_back([&, i] {
            for (int n = 0; n < 8; ++n) {
                int64_t id = 0;
                Scores all(want.size());
                ingot_sequence_open(decoder.handle, &id, nullptr, 0);
                for (int64_t from = 0; from < 60; from += 20) {
                    const int64_t offsets[] = {0, 20};
                    wrong[i] += ingot_decode(decoder.handle, ids.data() + from, 20, offsets, &id, 1, 1,
                                             all.data() + from * 90, 20 * 90, nullptr, 0) != INGOT_OK;
                    int64_t length = 0;
                    ingot_sequence_length(decoder.handle, id, &length, nullptr, 0);
                    wrong[i] += length != from + 20 || ingot_free_tokens(decoder.handle) < 0;
                }
                ingot_sequence_close(decoder.handle, id, nullptr, 0);
                wrong[i] += all != want;
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    check(wrong == std::vector<int>(4), "four callers of a decoder get the right answers");
    check(ingot_free_tokens(decoder.handle) == 4 * 64, "all pages come back");
}

#if !defined(__SANITIZE_THREAD__) && !defined(INGOT_EMULATED_CPU)  // neither follows threads made after a fork
void children_go_on() {
    const RandomModel model(gpt2());
    const Ids ids = random_ids(60, 90);
    Decoder decoder(model, 2);
    const Scores want = decoder.fed(ids, {60});
    const int64_t id = decoder.open();
    decoder.step({{id, Ids(ids.begin(), ids.begin() + 50)}});
    const auto goes_on = [&] {
        const Scores rest = decoder.step({{id, Ids(ids.begin() + 50, ids.end())}}, true);
        return std::equal(rest.begin(), rest.end(), want.begin() + 50 * 90);
    };
    const pid_t child = fork();
    if (child == 0) _exit(goes_on() ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child goes on with its parent's sequence");
    check(goes_on(), "the parent goes on");
}
#else
void children_go_on() {}
#endif

}  // namespace

int main() {
    if (!is_cap_granted()) return skipped;
    every_shape_and_set();
    used_pages_are_as_good_as_new();
    for (const Shape& shape : shapes()) {
        for (int32_t bits : {32, 8}) random_lives_give_the_scores_of_quiet_ones(shape, bits);
    }
    bad_steps_are_refused_and_change_nothing();
    bad_calls_are_refused();
    other_transformers_are_refused();
    bad_tensors_are_refused();
    steps_allocate_once();
    callers_wait_for_one_another();
    children_go_on();
    return summary();
}
