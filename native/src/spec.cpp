#include "spec.h"

#include <cmath>

namespace ingot {
namespace {

// Integer sums of a row stay below 2^31 up to this many inputs: 65536 * 255 * 128.
constexpr int32_t kWidest = 65536;
constexpr int32_t kLongest = 1 << 20;

void between(const char* name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
        throw Refusal(INGOT_BAD_SPEC, std::string("spec.") + name + " must be between " + std::to_string(low) +
                                          " and " + std::to_string(high) + "; got " + std::to_string(value) + ".");
    }
}

void require(bool holds, const std::string& text) {
    if (!holds) throw Refusal(INGOT_BAD_SPEC, text);
}

bool flag(const char* name, int32_t value) {
    between(name, value, 0, 1);
    return value == 1;
}

void check_sizes(const ingot_spec& facts) {
    between("layers", facts.layers, 1, 1024);
    between("hidden", facts.hidden, 1, kWidest);
    between("heads", facts.heads, 1, kWidest);
    between("kv_heads", facts.kv_heads, 1, facts.heads);
    between("head_dim", facts.head_dim, 1, 4096);
    between("inner", facts.inner, 1, kWidest);
    between("vocab", facts.vocab, 1, 1 << 28);
    between("positions", facts.positions, 1, kLongest);
    between("token_types", facts.token_types, 0, kWidest);
    between("position_offset", facts.position_offset, 0, kLongest);
    require(facts.heads % facts.kv_heads == 0, "spec.kv_heads must divide spec.heads.");
    between("heads * head_dim", int64_t(facts.heads) * facts.head_dim, 1, kWidest);
    between("padding_id", facts.padding_id, -1, facts.vocab - 1);
    require(facts.padding_id < 0 || facts.position_offset > 0,
            "spec.position_offset must leave a row for padding_id; got 0.");
    between("position", facts.position, 0, 3);
    between("norm", facts.norm, 0, 1);
    between("activation", facts.activation, 0, 5);
    between("pool", facts.pool, 0, 3);
    between("n_head", facts.n_head, 0, 64);
    between("head_norm", facts.head_norm, -1, facts.n_head - 1);
    require(std::isfinite(facts.epsilon) && facts.epsilon >= 0, "spec.epsilon must be finite and not negative.");
    require(std::isfinite(facts.attention_scale) && facts.attention_scale >= 0,
            "spec.attention_scale must be finite and not negative; 0 stands for head_dim ** -0.5.");
}

void read_rotary(const ingot_spec& facts, Spec& spec) {
    if (spec.position != Position::rotary) return;
    between("rotary_dim", facts.rotary_dim, 2, facts.head_dim);
    require(facts.rotary_dim % 2 == 0, "spec.rotary_dim must be even.");
    require(facts.rotary_bases != nullptr, "spec.rotary_bases must name a base for every block.");
    for (int32_t i = 0; i < facts.layers; ++i) {
        const double base = facts.rotary_bases[i];
        require(std::isfinite(base) && base > 0, "spec.rotary_bases must be finite and positive.");
        spec.rotary_bases.push_back(base);
    }
}

void read_head(const ingot_spec& facts, Spec& spec) {
    require(facts.n_head == 0 || (facts.head_activations && facts.head_widths),
            "spec.head_activations and spec.head_widths must be given for every layer of the head.");
    for (int32_t j = 0; j < facts.n_head; ++j) {
        between("head", facts.head_activations[j], 0, 5);
        const bool is_last = j + 1 == facts.n_head;  // only the last may be as wide as a vocabulary
        between("head_widths", facts.head_widths[j], 1, is_last ? 1 << 24 : kWidest);
        spec.head.push_back({Activation(facts.head_activations[j]), facts.head_widths[j]});
    }
}

}  // namespace

Spec checked_spec(const ingot_spec& facts) {
    check_sizes(facts);
    Spec spec{};
    spec.layers = facts.layers, spec.hidden = facts.hidden, spec.heads = facts.heads;
    spec.kv_heads = facts.kv_heads, spec.head_dim = facts.head_dim, spec.inner = facts.inner;
    spec.vocab = facts.vocab, spec.positions = facts.positions, spec.token_types = facts.token_types;
    spec.position = Position(facts.position);
    spec.position_offset = facts.position_offset;
    spec.padding_id = facts.padding_id;
    spec.norm = Norm(facts.norm);
    spec.norm_first = flag("norm_first", facts.norm_first);
    spec.first_attention_norm = flag("first_attention_norm", facts.first_attention_norm);
    spec.embedding_norm = flag("embedding_norm", facts.embedding_norm);
    spec.final_norm = flag("final_norm", facts.final_norm);
    spec.activation = Activation(facts.activation);
    spec.gated = flag("gated", facts.gated);
    spec.causal = flag("causal", facts.causal);
    spec.epsilon = float(facts.epsilon);
    const double usual_scale = 1 / std::sqrt(double(facts.head_dim));
    spec.attention_scale = float(facts.attention_scale > 0 ? facts.attention_scale : usual_scale);
    spec.rotary_dim = facts.rotary_dim;
    read_rotary(facts, spec);
    spec.windows.assign(size_t(facts.layers), 0);
    for (int32_t i = 0; facts.windows && i < facts.layers; ++i) {
        between("windows", facts.windows[i], 0, kLongest);
        spec.windows[size_t(i)] = facts.windows[i];
    }
    spec.pool = Pool(facts.pool);
    spec.pool_norm = flag("pool_norm", facts.pool_norm);
    read_head(facts, spec);
    spec.head_norm = facts.head_norm;
    spec.normalize = flag("normalize", facts.normalize);
    between("heads * head_dim + 2 * kv_heads * head_dim", spec.qkv_width(), 1, 3 * kWidest);
    return spec;
}

}  // namespace ingot
