/* The C interface of the engine. Plain data only: no exception leaves it and no input crashes it. */
#ifndef INGOT_NATIVE_H
#define INGOT_NATIVE_H
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define INGOT_EXPORT __declspec(dllexport)
#else
#define INGOT_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Counts up when something that is here changes its meaning; what is appended to a struct does not. */
#define INGOT_ABI 1

enum {
    INGOT_OK = 0,
    INGOT_BAD_CALL = 1,   /* a null pointer, a struct of another size */
    INGOT_BAD_SPEC = 2,   /* sizes or choices that no transformer has */
    INGOT_BAD_TENSOR = 3, /* missing, of another size, not finite */
    INGOT_BAD_INPUT = 4,  /* token ids, types, offsets, room for the answer */
    INGOT_NO_SET = 5,     /* the instruction set asked for is not granted here */
    INGOT_NO_MEMORY = 6,
    INGOT_FAILED = 7,     /* anything else; the text says what */
    INGOT_CACHE_FULL = 8  /* no pages left for the tokens; nothing has changed */
};

/* Choices are numbered as in spec.py: Position, Norm, Activation, Pool in the order of their names there. */
typedef struct ingot_spec {
    uint32_t struct_size;
    int32_t layers, hidden, heads, kv_heads, head_dim, inner, vocab, positions, token_types;
    int32_t position, position_offset, padding_id, norm, norm_first, first_attention_norm, embedding_norm, final_norm;
    int32_t activation, gated, causal, rotary_dim, pool, pool_norm, head_norm, normalize;
    int32_t n_head;                  /* dense layers after the pool; a language model's scores are the last */
    const int32_t* head_activations; /* [n_head] */
    const int32_t* head_widths;      /* [n_head] */
    const double* rotary_bases;      /* [layers], or null if position is not rotary */
    const int32_t* windows;          /* [layers], or null: every token sees all */
    double epsilon, attention_scale;
} ingot_spec;

/* A packed tensor; names, types and shapes in ingot_native/layout.py. 64-byte aligned; stays the caller's and
 * must outlive the encoder or decoder, so a mapped file is used where it lies. */
typedef struct ingot_tensor {
    const char* name;
    const void* data;
    uint64_t size_bytes;
} ingot_tensor;

typedef struct ingot_config {
    uint32_t struct_size;
    int32_t threads; /* 0: one per granted core */
    const char* isa; /* name of an instruction set, or null for the fastest that is granted */
    const ingot_spec* spec;
    const ingot_tensor* tensors;
    uint64_t n_tensors;
} ingot_config;

typedef struct ingot_encoder ingot_encoder;

INGOT_EXPORT int ingot_abi(void);
INGOT_EXPORT const char* ingot_version(void);
/* Names of the granted instruction sets, slowest first, separated by spaces. */
INGOT_EXPORT const char* ingot_sets(void);

/* On failure the answer is a code, *encoder is null and error holds a sentence (cut to error_bytes). */
INGOT_EXPORT int ingot_create(const ingot_config* config, ingot_encoder** encoder, char* error, size_t error_bytes);
INGOT_EXPORT void ingot_free(ingot_encoder* encoder);

INGOT_EXPORT int ingot_threads(const ingot_encoder* encoder);
INGOT_EXPORT const char* ingot_isa(const ingot_encoder* encoder);
/* Floats in a row of the answer. */
INGOT_EXPORT int ingot_width(const ingot_encoder* encoder);

/* Sequences lie one after another in ids, without padding: sequence s is ids[offsets[s]] to ids[offsets[s + 1] - 1].
 * types is null for all zero. The answer has a row per token if the pool is `tokens`, else a row per sequence;
 * out_floats says how many floats out can hold. Calls from several threads wait for one another. */
INGOT_EXPORT int ingot_run(ingot_encoder* encoder, const int32_t* ids, const int32_t* types, int64_t n_ids,
                           const int64_t* offsets, int64_t n_sequences, float* out, int64_t out_floats, char* error,
                           size_t error_bytes);

/* A causal language model whose sequences live on between calls: their keys and values lie in a cache. */
typedef struct ingot_decoder ingot_decoder;

/* The cache has room for cache_tokens tokens of all sequences together, in pages of 32; cache_bits is 32 (floats) or
 * 8 (codes with a scale per token and head). */
INGOT_EXPORT int ingot_decoder_create(const ingot_config* config, int64_t cache_tokens, int32_t cache_bits,
                                      ingot_decoder** decoder, char* error, size_t error_bytes);
INGOT_EXPORT void ingot_decoder_free(ingot_decoder* decoder);
INGOT_EXPORT int ingot_decoder_threads(const ingot_decoder* decoder);
INGOT_EXPORT const char* ingot_decoder_isa(const ingot_decoder* decoder);
/* Scores in a row of the answer. */
INGOT_EXPORT int ingot_decoder_width(const ingot_decoder* decoder);
/* Tokens that fit the pages which no sequence has taken. */
INGOT_EXPORT int64_t ingot_free_tokens(ingot_decoder* decoder);

/* Numbers of sequences are never used again. */
INGOT_EXPORT int ingot_sequence_open(ingot_decoder* decoder, int64_t* sequence, char* error, size_t error_bytes);
INGOT_EXPORT int ingot_sequence_close(ingot_decoder* decoder, int64_t sequence, char* error, size_t error_bytes);
/* Forgets all tokens after the first `length`. */
INGOT_EXPORT int ingot_sequence_trim(ingot_decoder* decoder, int64_t sequence, int64_t length, char* error,
                                     size_t error_bytes);
INGOT_EXPORT int ingot_sequence_length(ingot_decoder* decoder, int64_t sequence, int64_t* length, char* error,
                                       size_t error_bytes);

/* sequences[s] gains ids[offsets[s]] to ids[offsets[s + 1] - 1]. The answer has the scores of what may follow the last
 * token of each sequence, or, if `every` is not 0, of what may follow each token. Either all of it happens or nothing.
 * Scores depend on the sequence alone: not on how it was cut into calls, on what else is in the call, or on the
 * number of threads. Calls from several threads wait for one another. */
INGOT_EXPORT int ingot_decode(ingot_decoder* decoder, const int32_t* ids, int64_t n_ids, const int64_t* offsets,
                              const int64_t* sequences, int64_t n_sequences, int32_t every, float* out,
                              int64_t out_floats, char* error, size_t error_bytes);

#ifdef __cplusplus
}
#endif
#endif
