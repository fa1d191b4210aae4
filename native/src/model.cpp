#include "model.h"

#include <cmath>
#include <map>
#include <string_view>

namespace ingot {
namespace {

using std::to_string;

constexpr size_t kMostAngles = size_t(1) << 25;

class Tensors {
  public:
    Tensors(const ingot_tensor* tensors, uint64_t count) {
        for (uint64_t i = 0; i < count; ++i) {
            const ingot_tensor& tensor = tensors[i];
            if (tensor.name == nullptr || tensor.data == nullptr) {
                throw Refusal(INGOT_BAD_CALL, "Tensor " + to_string(i) + " must have a name and data; one is null.");
            }
            if (!by_name_.emplace(tensor.name, tensor).second) refuse(tensor.name, "is given twice");
        }
    }

    bool has(const std::string& name) const { return by_name_.count(name) > 0; }

    template <class T>
    const T* of(const std::string& name, int64_t count) const {
        const auto found = by_name_.find(name);
        if (found == by_name_.end()) refuse(name, "is missing");
        const ingot_tensor& tensor = found->second;
        const uint64_t expected = uint64_t(count) * sizeof(T);
        if (tensor.size_bytes != expected) {
            refuse(name, "must have " + to_string(expected) + " bytes; got " + to_string(tensor.size_bytes));
        }
        if (reinterpret_cast<uintptr_t>(tensor.data) % 64 != 0) refuse(name, "must begin at a multiple of 64 bytes");
        return static_cast<const T*>(tensor.data);
    }

    const float* finite(const std::string& name, int64_t count) const {
        const float* values = of<float>(name, count);
        for (int64_t i = 0; i < count; ++i) {
            if (!std::isfinite(values[i])) refuse(name, "holds a value that is not finite, at " + to_string(i));
        }
        return values;
    }

    [[noreturn]] static void refuse(const std::string& name, const std::string& what) {
        throw Refusal(INGOT_BAD_TENSOR, "Tensor '" + name + "' " + what + ".");
    }

  private:
    std::map<std::string, ingot_tensor, std::less<>> by_name_;
};

Weights8 weights8(const Tensors& tensors, const std::string& name, int32_t n, int32_t k) {
    Weights8 weights{};
    weights.n = n, weights.k = k;
    weights.n_pad = round_up(n, 16), weights.k_pad = round_up(k, 64);
    weights.codes = tensors.of<int8_t>(name + ".codes", int64_t(weights.n_pad) * weights.k_pad);
    weights.scales = tensors.finite(name + ".scales", weights.n_pad);
    weights.bias = tensors.finite(name + ".bias", weights.n_pad);
    weights.sums = tensors.of<int32_t>(name + ".sums", weights.n_pad);
    for (int32_t i = 0; i < weights.n_pad; ++i) {  // a larger sum cannot be true and would overflow
        if (std::abs(int64_t(weights.sums[i])) > 128 * int64_t(weights.k_pad)) {
            Tensors::refuse(name + ".sums", "holds a sum that no row of codes has, at " + to_string(i));
        }
    }
    return weights;
}

NormWeights norm(const Tensors& tensors, const std::string& name, int32_t n, bool is_there) {
    NormWeights weights;
    if (!is_there) return weights;
    weights.weight = tensors.finite(name + ".weight", n);
    if (tensors.has(name + ".bias")) weights.bias = tensors.finite(name + ".bias", n);
    return weights;
}

Tokens tokens(const Tensors& tensors, const Spec& spec) {
    Tokens table;
    const int64_t count = int64_t(spec.vocab) * spec.hidden;
    if (tensors.has("embed.tokens.weight")) {
        table.weight = tensors.of<float>("embed.tokens.weight", count);
    } else {
        table.codes = tensors.of<int8_t>("embed.tokens.codes", count);
        table.scales = tensors.finite("embed.tokens.scales", spec.vocab);
    }
    return table;
}

// Angles of position p and pair d: p * base ** (-2 d / rotary_dim), in double and rounded once.
std::vector<float> angle_table(const Spec& spec, double base) {
    const size_t half = size_t(spec.rotary_dim) / 2, count = size_t(spec.positions) * half;
    std::vector<float> table(2 * count);  // cosines, then sines
    for (size_t d = 0; d < half; ++d) {
        const double step = std::pow(base, -2.0 * double(d) / spec.rotary_dim);
        for (size_t p = 0; p < size_t(spec.positions); ++p) {
            table[p * half + d] = float(std::cos(double(p) * step));
            table[count + p * half + d] = float(std::sin(double(p) * step));
        }
    }
    return table;
}

void add_angles(Model& model) {
    std::map<double, const float*> by_base;
    const Spec& spec = model.spec;
    for (double base : spec.rotary_bases) by_base[base] = nullptr;
    const size_t count = size_t(spec.positions) * size_t(spec.rotary_dim / 2);
    // The only tables that no file backs: without a bound a small file could ask for any amount of memory.
    if (by_base.size() * count > kMostAngles) {
        throw Refusal(INGOT_BAD_SPEC, "spec.positions * spec.rotary_dim / 2 for every base must be at most " +
                                          to_string(kMostAngles) + "; got " + to_string(by_base.size() * count) + ".");
    }
    for (size_t i = 0; i < spec.rotary_bases.size(); ++i) {
        const float*& table = by_base[spec.rotary_bases[i]];
        if (table == nullptr) {
            model.angles.push_back(angle_table(spec, spec.rotary_bases[i]));
            table = model.angles.back().data();
        }
        model.blocks[i].cosine = table;
        model.blocks[i].sine = table + count;
    }
}

Block block(const Tensors& tensors, const Spec& spec, int32_t i) {
    const std::string name = "layers." + to_string(i) + ".";
    Block block;
    block.attention_norm = norm(tensors, name + "attention_norm", spec.hidden, spec.has_attention_norm(i));
    block.mlp_norm = norm(tensors, name + "mlp_norm", spec.hidden, true);
    block.qkv = weights8(tensors, name + "qkv", spec.qkv_width(), spec.hidden);
    block.o = weights8(tensors, name + "o", spec.hidden, spec.q_width());
    block.up = weights8(tensors, name + "up", spec.inner, spec.hidden);
    block.gate = spec.gated ? weights8(tensors, name + "gate", spec.inner, spec.hidden) : Weights8{};
    block.down = weights8(tensors, name + "down", spec.hidden, spec.inner);
    return block;
}

std::vector<HeadWeights> head(const Tensors& tensors, const Spec& spec) {
    std::vector<HeadWeights> layers;
    int32_t inputs = spec.hidden;
    for (size_t j = 0; j < spec.head.size(); ++j) {
        const std::string name = "head." + to_string(j);
        const int32_t width = spec.head[j].width;
        HeadWeights layer;
        layer.inputs = inputs;
        layer.is_float = tensors.has(name + ".weight");
        if (layer.is_float) {
            layer.weight = tensors.finite(name + ".weight", int64_t(width) * inputs);
            layer.bias = tensors.finite(name + ".bias", width);
        } else {
            layer.packed = weights8(tensors, name, width, inputs);
        }
        layers.push_back(layer);
        inputs = width;
    }
    return layers;
}

}  // namespace

Model checked_model(const ingot_spec& facts, const ingot_tensor* given, uint64_t count) {
    const Tensors tensors(given, count);
    Model model{};
    model.spec = checked_spec(facts);
    const Spec& spec = model.spec;
    model.tokens = tokens(tensors, spec);
    const bool has_table = spec.position == Position::absolute || tensors.has("embed.positions");
    if (has_table) {
        const int64_t rows = int64_t(spec.position_offset) + spec.positions;
        model.positions = tensors.finite("embed.positions", rows * spec.hidden);
    }
    if (spec.token_types > 0) model.types = tensors.finite("embed.types", int64_t(spec.token_types) * spec.hidden);
    if (spec.position == Position::relative) {
        model.relative = tensors.finite("relative", int64_t(spec.heads) * (2 * int64_t(spec.positions) - 1));
    }
    model.embedding_norm = norm(tensors, "embed.norm", spec.hidden, spec.embedding_norm);
    model.final_norm = norm(tensors, "final_norm", spec.hidden, spec.final_norm);
    model.pool_norm = norm(tensors, "pool_norm", spec.hidden, spec.pool_norm);
    if (spec.head_norm >= 0) {
        model.head_norm = norm(tensors, "head.norm", spec.head[size_t(spec.head_norm)].width, true);
    }
    for (int32_t i = 0; i < spec.layers; ++i) model.blocks.push_back(block(tensors, spec, i));
    model.head = head(tensors, spec);
    add_angles(model);
    return model;
}

}  // namespace ingot
