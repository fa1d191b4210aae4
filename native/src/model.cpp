#include "model.h"

#include <algorithm>
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

    uint64_t size_bytes(const std::string& name) const {
        const auto found = by_name_.find(name);
        return found == by_name_.end() ? 0 : found->second.size_bytes;
    }

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

// The group follows from how many ratios there are.
int32_t group_of(const Tensors& tensors, const std::string& name, int32_t n_pad, int32_t k) {
    for (int32_t group : {32, 128}) {
        const uint64_t ratios = uint64_t(n_pad) * uint64_t(k / group);
        if (k % group == 0 && tensors.size_bytes(name) == 2 * ratios) return group;
    }
    Tensors::refuse(name, "must have a half for every 32 or 128 inputs of " + to_string(n_pad) + " outputs");
}

Weights4 weights4(const Tensors& tensors, const std::string& name, int32_t n, int32_t k) {
    Weights4 weights{};
    weights.n = n, weights.k = k, weights.n_pad = round_up(n, 16);
    weights.group = group_of(tensors, name + ".ratios", weights.n_pad, k);
    const int64_t ratios = int64_t(weights.n_pad) * (k / weights.group);
    weights.codes = tensors.of<uint8_t>(name + ".codes4", int64_t(weights.n_pad) * (k / 2));
    weights.ratios = tensors.of<uint16_t>(name + ".ratios", ratios);
    for (int64_t i = 0; i < ratios; ++i) {
        if ((weights.ratios[i] & 0x7c00) == 0x7c00) {
            Tensors::refuse(name + ".ratios", "holds a value that is not finite, at " + to_string(i));
        }
    }
    weights.scales = tensors.finite(name + ".scales", weights.n_pad);
    weights.bias = tensors.finite(name + ".bias", weights.n_pad);
    return weights;
}

Weights16 weights16(const Tensors& tensors, const std::string& name, int32_t n, int32_t k) {
    Weights16 weights{};
    weights.n = n, weights.k = k, weights.n_pad = round_up(n, 16), weights.k_pad = round_up(k, 32);
    const int64_t count = int64_t(weights.n_pad) * weights.k_pad;
    weights.values = tensors.of<uint16_t>(name + ".bf16", count);
    for (int64_t i = 0; i < count; ++i) {
        if ((weights.values[i] & 0x7f80) == 0x7f80) {
            Tensors::refuse(name + ".bf16", "holds a value that is not finite, at " + to_string(i));
        }
    }
    weights.bias = tensors.finite(name + ".bias", weights.n_pad);
    return weights;
}

Matrix matrix(const Tensors& tensors, const std::string& name, int32_t n, int32_t k) {
    Matrix matrix;
    matrix.n = n, matrix.k = k;
    if (tensors.has(name + ".bf16")) {
        matrix.form = Form::bf16;
        matrix.sixteen = weights16(tensors, name, n, k);
    } else if (tensors.has(name + ".codes4")) {
        matrix.form = Form::four_bits;
        matrix.four = weights4(tensors, name, n, k);
    } else {
        matrix.eight = weights8(tensors, name, n, k);
    }
    return matrix;
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
        return table;
    }
    if (tensors.has("embed.tokens.bf16")) {
        table.bf16 = tensors.of<uint16_t>("embed.tokens.bf16", count);
        return table;
    }
    table.scales = tensors.finite("embed.tokens.scales", spec.vocab);
    if (tensors.has("embed.tokens.codes4") && spec.hidden % 2 == 0) {
        table.codes4 = tensors.of<uint8_t>("embed.tokens.codes4", count / 2);
    } else {
        table.codes = tensors.of<int8_t>("embed.tokens.codes", count);
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
    block.qkv = matrix(tensors, name + "qkv", spec.qkv_width(), spec.hidden);
    block.o = matrix(tensors, name + "o", spec.hidden, spec.q_width());
    block.up = matrix(tensors, name + "up", spec.inner, spec.hidden);
    block.gate = spec.gated ? matrix(tensors, name + "gate", spec.inner, spec.hidden) : Matrix{};
    block.down = matrix(tensors, name + "down", spec.hidden, spec.inner);
    return block;
}

std::vector<Matrix> head(const Tensors& tensors, const Spec& spec) {
    std::vector<Matrix> layers;
    int32_t inputs = spec.hidden;
    for (size_t j = 0; j < spec.head.size(); ++j) {
        const std::string name = "head." + to_string(j);
        const int32_t width = spec.head[j].width;
        if (tensors.has(name + ".weight")) {
            Matrix layer;
            layer.form = Form::floats;
            layer.n = width, layer.k = inputs;
            layer.weight = tensors.finite(name + ".weight", int64_t(width) * inputs);
            layer.bias = tensors.finite(name + ".bias", width);
            layers.push_back(layer);
        } else {
            layers.push_back(matrix(tensors, name, width, inputs));
        }
        inputs = width;
    }
    return layers;
}

// Whether the token table is the last matrix of the head: a language model stores a table that serves twice once.
bool is_tied(const Tensors& tensors, const Spec& spec) {
    for (const char* form : {"weight", "bf16", "scales"}) {
        if (tensors.has(std::string("embed.tokens.") + form)) return false;
    }
    if (spec.head.empty()) return false;
    const size_t layers = spec.head.size();
    const int32_t inputs = layers > 1 ? spec.head[layers - 2].width : spec.hidden;
    return spec.head.back().width == spec.vocab && inputs == spec.hidden;
}

void read_token(const Model& model, int64_t id, float* x) {
    const int32_t hidden = model.spec.hidden, half = hidden / 2;
    const Tokens& table = model.tokens;
    if (table.weight != nullptr) {
        std::copy_n(table.weight + id * hidden, hidden, x);
    } else if (table.bf16 != nullptr) {
        for (int32_t i = 0; i < hidden; ++i) x[i] = from_bf16(table.bf16[id * hidden + i]);
    } else if (table.codes4 != nullptr) {
        const uint8_t* codes = table.codes4 + id * half;
        for (int32_t i = 0; i < half; ++i) x[i] = float((codes[i] & 15) - 8) * table.scales[id];
        for (int32_t i = 0; i < half; ++i) x[half + i] = float((codes[i] >> 4) - 8) * table.scales[id];
    } else if (table.codes != nullptr) {
        for (int32_t i = 0; i < hidden; ++i) x[i] = float(table.codes[id * hidden + i]) * table.scales[id];
    } else {
        model.head.back().row(id, x);
    }
}

}  // namespace

Model checked_model(const ingot_spec& facts, const ingot_tensor* given, uint64_t count) {
    const Tensors tensors(given, count);
    Model model{};
    model.spec = checked_spec(facts);
    const Spec& spec = model.spec;
    if (!is_tied(tensors, spec)) model.tokens = tokens(tensors, spec);
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

Operand::Widths Model::widest_operand() const {
    Operand::Widths widest;
    for (const Block& block : blocks) {
        for (const Matrix* part : {&block.qkv, &block.o, &block.up, &block.down}) widest.cover(*part);
        if (spec.gated) widest.cover(block.gate);
    }
    for (const Matrix& layer : head) widest.cover(layer);
    return widest;
}

void normalize(const Kernels& kernels, const Spec& spec, const NormWeights& norm, const float* x, int64_t ld_x,
               int32_t rows, int32_t n, float* y, int64_t ld_y) {
    if (spec.norm == Norm::layer) {
        kernels.layer_norm(x, ld_x, rows, n, norm.weight, norm.bias, spec.epsilon, y, ld_y);
    } else {
        kernels.rms_norm(x, ld_x, rows, n, norm.weight, spec.epsilon, y, ld_y);
    }
}

void embed_token(const Model& model, int64_t id, int64_t place, int64_t type, float* x) {
    const int32_t hidden = model.spec.hidden;
    read_token(model, id, x);
    for (int32_t i = 0; model.positions != nullptr && i < hidden; ++i) x[i] += model.positions[place * hidden + i];
    for (int32_t i = 0; model.types != nullptr && i < hidden; ++i) x[i] += model.types[type * hidden + i];
}

}  // namespace ingot
