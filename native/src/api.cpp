#include <cstdio>
#include <new>

#include "decoder.h"
#include "transformer.h"

struct ingot_encoder {
    ingot::Transformer transformer;
};

struct ingot_decoder {
    ingot::Decoder decoder;
};

namespace {

#if !defined(INGOT_VERSION)
#define INGOT_VERSION "0"
#endif

// Every set there is, slowest first.
constexpr const char* kSets[] = {"scalar",      "avx2",             "avx2-vnni", "avx512",
                                  "avx512-vnni", "avx512-vnni-bf16", "amx"};

using ingot::Refusal;

void say(char* error, size_t error_bytes, const char* text) {
    if (error != nullptr && error_bytes > 0) std::snprintf(error, error_bytes, "%s", text);
}

// Runs `body` and turns whatever it throws into a code and a sentence.
template <class Body>
int guarded(char* error, size_t error_bytes, Body body) noexcept {
    try {
        say(error, error_bytes, "");
        body();
        return INGOT_OK;
    } catch (const Refusal& refusal) {
        say(error, error_bytes, refusal.what());
        return refusal.code;
    } catch (const std::bad_alloc&) {
        say(error, error_bytes, "There must be memory for the model's tables and buffers; the system refused it.");
        return INGOT_NO_MEMORY;
    } catch (const std::exception& problem) {
        say(error, error_bytes, problem.what());
        return INGOT_FAILED;
    } catch (...) {
        say(error, error_bytes, "The engine failed for a reason it cannot name.");
        return INGOT_FAILED;
    }
}

void require(bool holds, const char* text) {
    if (!holds) throw Refusal(INGOT_BAD_CALL, text);
}

std::string granted_sets() {
    std::string names;
    for (const char* name : kSets) {
        if (ingot::kernels_of(name) != nullptr) names += (names.empty() ? "" : " ") + std::string(name);
    }
    return names;
}

const ingot::Kernels& kernels_for(const char* name) {
    if (name == nullptr || *name == 0) return *ingot::best_kernels();
    const ingot::Kernels* kernels = ingot::kernels_of(name);
    if (kernels == nullptr) {
        throw Refusal(INGOT_NO_SET, "The instruction set must be one of those granted here (" + granted_sets() +
                                        "); got '" + name + "'.");
    }
    return *kernels;
}

const ingot_config& checked(const ingot_config* config) {
    require(config != nullptr && config->struct_size == sizeof(ingot_config) && config->spec != nullptr &&
                config->spec->struct_size == sizeof(ingot_spec),
            "config and its spec must be given and have this library's size; rebuild the caller.");
    require(config->n_tensors == 0 || config->tensors != nullptr, "config.tensors is null.");
    require(config->threads >= 0, "config.threads must be 0 or more; it is negative.");
    return *config;
}

// Runs `body` on the decoder, if there is one.
template <class Body>
int decoding(ingot_decoder* decoder, char* error, size_t error_bytes, Body body) noexcept {
    return guarded(error, error_bytes, [&] {
        require(decoder != nullptr, "decoder must be given; it is null.");
        body(decoder->decoder);
    });
}

int64_t floats_of_answer(const ingot::Spec& spec, const ingot::Batch& batch, int64_t n_ids) {
    return (spec.pool == ingot::Pool::tokens ? n_ids : batch.sequences) * int64_t(spec.width());
}

}  // namespace

extern "C" {

int ingot_abi(void) { return INGOT_ABI; }

const char* ingot_version(void) { return INGOT_VERSION; }

const char* ingot_sets(void) {
    static const std::string names = granted_sets();
    return names.c_str();
}

int ingot_create(const ingot_config* config, ingot_encoder** encoder, char* error, size_t error_bytes) {
    return guarded(error, error_bytes, [&] {
        require(encoder != nullptr, "encoder must point to where the encoder goes; it is null.");
        *encoder = nullptr;
        const ingot_config& facts = checked(config);
        const ingot::Kernels& kernels = kernels_for(facts.isa);
        *encoder = new ingot_encoder{
            {ingot::checked_model(*facts.spec, facts.tensors, facts.n_tensors), kernels, facts.threads}};
    });
}

void ingot_free(ingot_encoder* encoder) { delete encoder; }

int ingot_threads(const ingot_encoder* encoder) {
    return encoder != nullptr ? encoder->transformer.threads() : 0;
}

const char* ingot_isa(const ingot_encoder* encoder) {
    return encoder != nullptr ? encoder->transformer.kernels().name : "";
}

int ingot_width(const ingot_encoder* encoder) {
    return encoder != nullptr ? encoder->transformer.spec().width() : 0;
}

int ingot_run(ingot_encoder* encoder, const int32_t* ids, const int32_t* types, int64_t n_ids, const int64_t* offsets,
              int64_t n_sequences, float* out, int64_t out_floats, char* error, size_t error_bytes) {
    return guarded(error, error_bytes, [&] {
        require(encoder != nullptr && offsets != nullptr && (ids != nullptr || n_ids == 0) &&
                    (out != nullptr || out_floats == 0),
                "encoder, ids, offsets and out must be given; one is null.");
        const ingot::Batch batch{ids, types, offsets, n_sequences};
        ingot::Transformer& transformer = encoder->transformer;
        ingot::check_batch(transformer.spec(), batch, n_ids);
        const int64_t needed = floats_of_answer(transformer.spec(), batch, n_ids);
        if (out_floats < needed) {
            throw Refusal(INGOT_BAD_INPUT, "out must hold " + std::to_string(needed) + " floats; got room for " +
                                               std::to_string(out_floats) + ".");
        }
        transformer.run(batch, out);
    });
}

int ingot_decoder_create(const ingot_config* config, int64_t cache_tokens, int32_t cache_bits, ingot_decoder** decoder,
                         char* error, size_t error_bytes) {
    return guarded(error, error_bytes, [&] {
        require(decoder != nullptr, "decoder must point to where the decoder goes; it is null.");
        *decoder = nullptr;
        const ingot_config& facts = checked(config);
        const ingot::Kernels& kernels = kernels_for(facts.isa);
        *decoder = new ingot_decoder{{ingot::checked_model(*facts.spec, facts.tensors, facts.n_tensors), kernels,
                                      facts.threads, cache_tokens, cache_bits}};
    });
}

void ingot_decoder_free(ingot_decoder* decoder) { delete decoder; }

int ingot_decoder_threads(const ingot_decoder* decoder) { return decoder != nullptr ? decoder->decoder.threads() : 0; }

const char* ingot_decoder_isa(const ingot_decoder* decoder) {
    return decoder != nullptr ? decoder->decoder.kernels().name : "";
}

int ingot_decoder_width(const ingot_decoder* decoder) {
    return decoder != nullptr ? decoder->decoder.spec().width() : 0;
}

int64_t ingot_free_tokens(ingot_decoder* decoder) {
    int64_t tokens = 0;
    decoding(decoder, nullptr, 0, [&](ingot::Decoder& it) { tokens = it.free_tokens(); });
    return tokens;
}

int ingot_sequence_open(ingot_decoder* decoder, int64_t* sequence, char* error, size_t error_bytes) {
    return decoding(decoder, error, error_bytes, [&](ingot::Decoder& it) {
        require(sequence != nullptr, "sequence must point to where the number goes; it is null.");
        *sequence = it.open();
    });
}

int ingot_sequence_close(ingot_decoder* decoder, int64_t sequence, char* error, size_t error_bytes) {
    return decoding(decoder, error, error_bytes, [&](ingot::Decoder& it) { it.close(sequence); });
}

int ingot_sequence_trim(ingot_decoder* decoder, int64_t sequence, int64_t length, char* error, size_t error_bytes) {
    return decoding(decoder, error, error_bytes, [&](ingot::Decoder& it) { it.trim(sequence, length); });
}

int ingot_sequence_length(ingot_decoder* decoder, int64_t sequence, int64_t* length, char* error,
                          size_t error_bytes) {
    return decoding(decoder, error, error_bytes, [&](ingot::Decoder& it) {
        require(length != nullptr, "length must point to where the length goes; it is null.");
        *length = it.length(sequence);
    });
}

int ingot_decode(ingot_decoder* decoder, const int32_t* ids, int64_t n_ids, const int64_t* offsets,
                 const int64_t* sequences, int64_t n_sequences, int32_t every, float* out, int64_t out_floats,
                 char* error, size_t error_bytes) {
    return decoding(decoder, error, error_bytes, [&](ingot::Decoder& it) {
        require(offsets != nullptr && (ids != nullptr || n_ids == 0) && (sequences != nullptr || n_sequences == 0) &&
                    (out != nullptr || out_floats == 0),
                "ids, offsets, sequences and out must be given; one is null.");
        it.run({ids, n_ids, offsets, sequences, n_sequences, every != 0}, out, out_floats);
    });
}

}  // extern "C"
