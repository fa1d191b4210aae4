"""The forward pass in plain numpy: the specification that every instruction set is tested against.

Weights and token table are rounded to eight bits per row, the input of every eight-bit matrix to
eight bits per token; of a matrix in four bits both are rounded in groups of inputs, the input to
eight bits; of a matrix in bf16 both are rounded to it. A cache of keys and values in eight bits
rounds each token's, head by head. Everything else is computed in double precision, one sequence at
a time. Sets that multiply in bf16 inside attention are asked for with `bf16`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ingot_native.spec import TransformerSpec

Array = NDArray[Any]  # float64 inside, whatever the caller has outside
Tensors = Mapping[str, Array]
Bits = Literal[4, 8, 16] | None

_FLOAT_HEAD_OUTPUTS = 64  # a classifier with at most as many outputs stays in float
_GROUPS = (128, 32)


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A weight as the kernels see it.

    Attributes:
        values: `(out, in)`, float64.
        group: Inputs that share a scale, of the weight and of what it multiplies; 0: all.
        is_bf16: Whether it and what it multiplies are rounded to bf16 instead.
    """

    values: Array
    group: int = 0
    is_bf16: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Net:
    """A transformer whose weights are rounded.

    Attributes:
        spec: What it is made of.
        tensors: Tensors as they were given: biases, norms, tables and what stays in float.
        matrices: The rounded weights, by the names of the given ones; also the token table.
        bf16: Whether attention multiplies in bf16.
        cache_bits: Of keys and values: 32 or 8.
    """

    spec: TransformerSpec
    tensors: Tensors
    matrices: Mapping[str, Matrix]
    bf16: bool = False
    cache_bits: int = 32


def forward(
    spec: TransformerSpec,
    tensors: Tensors,
    sequences: Sequence[Sequence[int] | Array],
    types: Sequence[Sequence[int] | Array] | None = None,
    *,
    bf16: bool = False,
    cache_bits: Literal[32, 8] = 32,
    bits: Bits = None,
    group: int = 32,
) -> NDArray[np.float64]:
    """Compute what `Encoder.encode` or, for a language model, a decoder computes.

    Args:
        spec: What the transformer is made of.
        tensors: Tensors by the names in `spec.py`, as `pack` takes them.
        sequences: Token ids of each sequence.
        types: Token types of each sequence; None for all 0.
        bf16: Whether queries, keys, values and the softmax's numerators are rounded to bf16.
        cache_bits: 8 if keys and values go through a cache of eight bits.
        bits: As `pack` takes it.
        group: As `pack` takes it.

    Returns:
        `(n, width)`; if the pool is `tokens`, `(tokens, width)`.
    """
    matrices = rounded_matrices(spec, tensors, bits, group)
    net = Net(spec, tensors, matrices, bf16, cache_bits)
    answers = []
    for i, ids in enumerate(sequences):
        kinds = np.zeros(len(ids), int) if types is None else np.asarray(types[i])
        x = body(net, np.asarray(ids), kinds)
        answers.append(head(net, pool(spec, x)))
    return np.concatenate(answers)


def rounded_matrices(
    spec: TransformerSpec, tensors: Tensors, bits: Bits = None, group: int = 32
) -> dict[str, Matrix]:
    """Round every weight as `pack` does."""
    found: dict[str, Matrix] = {}
    for i in range(spec.layers):
        names = [f"layers.{i}.{part}.weight" for part in ("q", "k", "v")]
        groups = {_group_of(tensors, name, bits, group) for name in names}
        joint = groups.pop() if len(groups) == 1 else 0
        if bits == 16 and any(tensors[name].dtype != np.int8 for name in names):
            found |= {name: _in_bf16(tensors, name) for name in names}
        else:
            found |= {name: _matrix(tensors, name, joint) for name in names}
        for part in ("o", "gate", "up", "down") if spec.gated else ("o", "up", "down"):
            name = f"layers.{i}.{part}.weight"
            found[name] = _any(tensors, name, bits, group)
    found["embed.tokens"] = _any(tensors, "embed.tokens", bits, 0)
    for name in _packed_head(spec, tensors):
        found[name] = _any(tensors, name, bits, group)
    return found


def vocabulary_weight(tensors: Tensors) -> str:
    """Name of the weight that scores the vocabulary: the token table unless there is another."""
    return "lm_head.weight" if "lm_head.weight" in tensors else "embed.tokens"


def _packed_head(spec: TransformerSpec, tensors: Tensors) -> Iterable[str]:
    for j in range(len(spec.head)):
        weight = tensors[f"head.{j}.weight"]
        if weight.dtype == np.int8 or len(weight) > _FLOAT_HEAD_OUTPUTS:
            yield f"head.{j}.weight"
    if spec.vocab_head:
        yield vocabulary_weight(tensors)


def _any(tensors: Tensors, name: str, bits: Bits, group: int) -> Matrix:
    """A weight in the form that it gets; without a group, never in four bits."""
    if bits == 16 and tensors[name].dtype != np.int8:
        return _in_bf16(tensors, name)
    return _matrix(tensors, name, _group_of(tensors, name, bits, group) if group else 0)


def _in_bf16(tensors: Tensors, name: str) -> Matrix:
    values = tensors[name].astype(np.float32)
    if tensors[name].dtype == np.int8:
        scale = tensors[f"{name}_scale"].astype(np.float32)
        values = values * np.repeat(scale, values.shape[1] // scale.shape[1], axis=1)
    return Matrix(to_bf16(values), is_bf16=True)


def _group_of(tensors: Tensors, name: str, bits: Bits, group: int) -> int:
    """Inputs that share a scale of four bits; 0 for a weight in eight."""
    weight = tensors[name]
    inputs = weight.shape[1]
    if weight.dtype != np.int8:
        return next((g for g in (group, 32) if bits == 4 and inputs % g == 0), 0)
    scale = tensors[f"{name}_scale"]
    is_small = weight.min() >= -8 and weight.max() <= 7 and scale.min() >= 0
    width = inputs // scale.shape[1]
    return next((g for g in _GROUPS if width % g == 0 and is_small and bits != 8), 0)


def _matrix(tensors: Tensors, name: str, group: int) -> Matrix:
    """A weight in four bits if `group` is not 0, else in eight."""
    weight, scale = tensors[name], tensors.get(f"{name}_scale")
    if weight.dtype == np.int8 and scale is not None:
        width = weight.shape[1] // scale.shape[1]
        if group or scale.shape[1] == 1:
            steps = _in_halves(scale) if group else scale.astype(np.float64)
            return Matrix(weight * np.repeat(steps, width, axis=1), group)
        weight = weight * np.repeat(scale.astype(np.float32), width, axis=1)
    single = weight.astype(np.float32)
    parts = single.reshape(len(single), -1, group or single.shape[1])
    top = np.float32(7 if group else 127)
    scales = np.abs(parts).max(axis=2) / top
    steps = _in_halves(scales) if group else scales.astype(np.float64)
    steps = np.where(steps > 0, steps, 1)[:, :, None]
    codes = np.clip(np.rint(parts / steps.astype(np.float32)), -top, top).astype(np.float64)
    return Matrix((codes * steps).reshape(single.shape), group)


def _in_halves(scales: Array) -> Array:
    """Scales `(rows, groups)` as shares of their row's largest in half precision."""
    single = scales.astype(np.float32)
    largest = single.max(axis=1, keepdims=True)
    largest[largest == 0] = 1
    ratios = (single / largest).astype(np.float16)
    return np.asarray(ratios.astype(np.float64) * largest)


def body(net: Net, ids: Array, kinds: Array) -> Array:
    """Embeddings and blocks of one sequence: `(tokens, hidden)`."""
    spec, tensors = net.spec, net.tensors
    x = net.matrices["embed.tokens"].values[ids]
    if "embed.positions" in tensors:
        is_placed = ids != spec.padding_id
        places = np.where(is_placed, np.cumsum(is_placed) - 1, -1)
        x = x + tensors["embed.positions"][spec.position_offset + places]
    if spec.token_types:
        x = x + tensors["embed.types"][kinds]
    if spec.embedding_norm:
        x = norm(net, "embed.norm", x)
    for i in range(spec.layers):
        x = block(net, i, x)
    return norm(net, "final_norm", x) if spec.final_norm else x


def block(net: Net, i: int, x: Array) -> Array:
    """One block: attention and MLP, each with its residual and norm."""
    spec, name = net.spec, f"layers.{i}."
    if not spec.norm_first:
        x = norm(net, name + "attention_norm", x + attention(net, i, x))
        return norm(net, name + "mlp_norm", x + mlp(net, name, x))
    is_normed = spec.first_attention_norm or i > 0
    inner = norm(net, name + "attention_norm", x) if is_normed else x
    x = x + attention(net, i, inner)
    return x + mlp(net, name, norm(net, name + "mlp_norm", x))


def attention(net: Net, i: int, x: Array) -> Array:
    """Scaled dot-product attention of all heads and the output matrix."""
    spec, name, length = net.spec, f"layers.{i}.", len(x)
    q, k, v = (
        linear(net, name + part, x).reshape(length, -1, spec.head_dim).swapaxes(0, 1)
        for part in "qkv"
    )
    if spec.position == "rotary":
        q, k = (rotated(spec, spec.rotary_bases[i], part) for part in (q, k))
    if net.cache_bits == 8:
        k, v = rounded(k), rounded(v)
    narrow = to_bf16 if net.bf16 else np.asarray
    q, k, v = narrow(q), narrow(k), narrow(v)
    group = spec.heads // spec.kv_heads
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scores = q @ k.swapaxes(1, 2) * (spec.attention_scale or spec.head_dim**-0.5)
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    if spec.position == "relative":
        scores = scores + net.tensors["relative"][:, distance + spec.positions - 1]
    window = spec.windows[i] if spec.windows else 0
    hidden = (distance > 0) & spec.causal | (np.abs(distance) > window) & (window > 0)
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    context = narrow(weights) @ v / weights.sum(axis=2, keepdims=True)
    return linear(net, name + "o", context.swapaxes(0, 1).reshape(length, -1))


def rotated(spec: TransformerSpec, base: float, x: Array) -> Array:
    """Queries or keys `(heads, tokens, head_dim)` turned by their positions."""
    half = spec.rotary_dim // 2
    angles = np.arange(x.shape[1])[:, None] * base ** (-2.0 * np.arange(half) / spec.rotary_dim)
    cosine, sine = np.cos(angles), np.sin(angles)
    first, second, rest = np.split(x, [half, 2 * half], axis=2)
    return np.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine, rest], axis=2
    )


def mlp(net: Net, name: str, x: Array) -> Array:
    """down(activation(up(x))), or down(activation(gate(x)) * up(x))."""
    spec = net.spec
    inner = linear(net, name + "up", x)
    if spec.gated:
        inner = activate(spec.activation, linear(net, name + "gate", x)) * inner
    else:
        inner = activate(spec.activation, inner)
    return linear(net, name + "down", inner)


def pool(spec: TransformerSpec, x: Array) -> Array:
    """Rows that leave the body: `(tokens or 1, hidden)`."""
    if spec.pool == "mean":
        return np.asarray(x.mean(axis=0, keepdims=True))
    return {"tokens": x, "first": x[:1], "last": x[-1:]}[spec.pool]


def head(net: Net, x: Array) -> Array:
    """Dense layers after the pool, and the length of the answer."""
    spec = net.spec
    if spec.pool_norm:
        x = norm(net, "pool_norm", x)
    for j, activation in enumerate(spec.head):
        x = activate(activation, linear(net, f"head.{j}", x))
        if j == spec.head_norm:
            x = norm(net, "head.norm", x)
    if spec.vocab_head:
        x = linear(net, vocabulary_weight(net.tensors).removesuffix(".weight"), x)
    if spec.normalize:
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x


def linear(net: Net, name: str, x: Array) -> Array:
    """X w^T + bias, with x in eight bits where w is an integer matrix, and in bf16 where w is."""
    weight = name if name in net.tensors else f"{name}.weight"
    bias = net.tensors.get(f"{name}.bias", 0.0)
    matrix = net.matrices.get(weight)
    if matrix is None:
        return np.asarray(x @ net.tensors[weight].T.astype(np.float64) + bias)
    if matrix.is_bf16:
        return np.asarray(to_bf16(x) @ matrix.values.T + bias)
    parts = x.reshape(len(x), -1, matrix.group or x.shape[1])
    return np.asarray(rounded(parts).reshape(x.shape) @ matrix.values.T + bias)


def to_bf16(x: Array) -> Array:
    """The nearest numbers with eight bits of significand, ties to even; zero below 2^-126."""
    x = np.where(np.abs(x) < 2.0**-126, 0, x)
    bits = x.astype(np.float32).view(np.uint32)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return upper.astype(np.uint32).view(np.float32).astype(np.float64)


def rounded(x: Array) -> Array:
    """Values in eight bits, a scale for each last axis: largest magnitude / 127, ties to even."""
    x = x.astype(np.float32)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    is_zero = largest < 2.0**-100
    inverse = np.float32(127) / np.where(is_zero, np.float32(1), largest)
    scale = np.where(is_zero, np.float32(0), largest / np.float32(127))
    return np.rint(x * inverse).astype(np.float64) * scale


def norm(net: Net, name: str, x: Array) -> Array:
    """Layer or root-mean-square normalization of every row."""
    spec, tensors = net.spec, net.tensors
    if spec.norm == "rms":
        size = np.sqrt((x**2).mean(axis=1, keepdims=True) + spec.epsilon)
        return np.asarray(x / size * tensors[f"{name}.weight"])
    centred = x - x.mean(axis=1, keepdims=True)
    size = np.sqrt((centred**2).mean(axis=1, keepdims=True) + spec.epsilon)
    scaled = centred / size * tensors[f"{name}.weight"]
    return np.asarray(scaled + tensors.get(f"{name}.bias", 0.0))


def activate(name: str, x: Array) -> Array:
    """An activation by its name in the spec."""
    if name == "gelu":
        x = 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x * math.sqrt(0.5)))
    elif name == "gelu-tanh":
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    elif name == "relu":
        x = np.maximum(x, 0)
    elif name == "silu":
        x = x / (1 + np.exp(-x))
    elif name == "tanh":
        x = np.tanh(x)
    return x
