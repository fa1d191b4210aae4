"""The forward pass in plain numpy: the specification that every instruction set is tested against.

Weights and token table are rounded to eight bits per row, the input of every eight-bit matrix to
eight bits per token, as the kernels do; everything else is computed in double precision, one
sequence at a time. Sets that multiply in bf16 inside attention are asked for with `bf16`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot_native.spec import TransformerSpec

Array = NDArray[Any]  # float64 inside, whatever the caller has outside
Tensors = Mapping[str, Array]

_FLOAT_HEAD_OUTPUTS = 64  # a head layer with at most as many outputs stays in float


def forward(
    spec: TransformerSpec,
    tensors: Tensors,
    sequences: Sequence[Sequence[int] | Array],
    types: Sequence[Sequence[int] | Array] | None = None,
    *,
    bf16: bool = False,
) -> NDArray[np.float64]:
    """Compute what `Encoder.encode` computes.

    Args:
        spec: What the transformer is made of.
        tensors: Tensors by the names in `spec.py`: float, or int8 with one scale per output.
        sequences: Token ids of each sequence.
        types: Token types of each sequence; None for all 0.
        bf16: Whether queries, keys, values and the softmax's numerators are rounded to bf16.

    Returns:
        `(n, width)`; if the pool is `tokens`, `(tokens, width)`.
    """
    answers = []
    for i, ids in enumerate(sequences):
        kinds = np.zeros(len(ids), int) if types is None else np.asarray(types[i])
        x = body(spec, tensors, np.asarray(ids), kinds, bf16)
        answers.append(head(spec, tensors, pool(spec, x)))
    return np.concatenate(answers)


def body(
    spec: TransformerSpec, tensors: Tensors, ids: Array, kinds: Array, bf16: bool = False
) -> Array:
    """Embeddings and blocks of one sequence: `(tokens, hidden)`."""
    x = fake_quantized(tensors, "embed.tokens")[ids]
    if "embed.positions" in tensors:
        is_placed = ids != spec.padding_id
        places = np.where(is_placed, np.cumsum(is_placed) - 1, -1)
        x = x + tensors["embed.positions"][spec.position_offset + places]
    if spec.token_types:
        x = x + tensors["embed.types"][kinds]
    if spec.embedding_norm:
        x = norm(spec, tensors, "embed.norm", x)
    for i in range(spec.layers):
        x = block(spec, tensors, i, x, bf16)
    return norm(spec, tensors, "final_norm", x) if spec.final_norm else x


def block(spec: TransformerSpec, tensors: Tensors, i: int, x: Array, bf16: bool = False) -> Array:
    """One block: attention and MLP, each with its residual and norm."""
    name = f"layers.{i}."
    if not spec.norm_first:
        x = norm(spec, tensors, name + "attention_norm", x + attention(spec, tensors, i, x, bf16))
        return norm(spec, tensors, name + "mlp_norm", x + mlp(spec, tensors, name, x))
    is_normed = spec.first_attention_norm or i > 0
    inner = norm(spec, tensors, name + "attention_norm", x) if is_normed else x
    x = x + attention(spec, tensors, i, inner, bf16)
    return x + mlp(spec, tensors, name, norm(spec, tensors, name + "mlp_norm", x))


def attention(
    spec: TransformerSpec, tensors: Tensors, i: int, x: Array, bf16: bool = False
) -> Array:
    """Scaled dot-product attention of all heads and the output matrix."""
    name, length = f"layers.{i}.", len(x)
    q, k, v = (
        linear(tensors, name + part, x).reshape(length, -1, spec.head_dim).swapaxes(0, 1)
        for part in "qkv"
    )
    if spec.position == "rotary":
        q, k = (rotated(spec, spec.rotary_bases[i], part) for part in (q, k))
    narrow = to_bf16 if bf16 else np.asarray
    q, k, v = narrow(q), narrow(k), narrow(v)
    group = spec.heads // spec.kv_heads
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scale = spec.attention_scale or spec.head_dim**-0.5
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    scores = q @ k.swapaxes(1, 2) * scale
    if spec.position == "relative":
        scores = scores + tensors["relative"][:, distance + spec.positions - 1]
    window = spec.windows[i] if spec.windows else 0
    hidden = (distance > 0) & spec.causal | (np.abs(distance) > window) & (window > 0)
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    context = narrow(weights) @ v / weights.sum(axis=2, keepdims=True)
    return linear(tensors, name + "o", context.swapaxes(0, 1).reshape(length, -1))


def rotated(spec: TransformerSpec, base: float, x: Array) -> Array:
    """Queries or keys `(heads, tokens, head_dim)` turned by their positions."""
    half = spec.rotary_dim // 2
    angles = np.arange(x.shape[1])[:, None] * base ** (-2.0 * np.arange(half) / spec.rotary_dim)
    cosine, sine = np.cos(angles), np.sin(angles)
    first, second, rest = np.split(x, [half, 2 * half], axis=2)
    return np.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine, rest], axis=2
    )


def mlp(spec: TransformerSpec, tensors: Tensors, name: str, x: Array) -> Array:
    """down(activation(up(x))), or down(activation(gate(x)) * up(x))."""
    inner = linear(tensors, name + "up", x)
    if spec.gated:
        inner = activate(spec.activation, linear(tensors, name + "gate", x)) * inner
    else:
        inner = activate(spec.activation, inner)
    return linear(tensors, name + "down", inner)


def pool(spec: TransformerSpec, x: Array) -> Array:
    """Rows that leave the body: `(tokens or 1, hidden)`."""
    if spec.pool == "mean":
        return np.asarray(x.mean(axis=0, keepdims=True))
    return {"tokens": x, "first": x[:1], "last": x[-1:]}[spec.pool]


def head(spec: TransformerSpec, tensors: Tensors, x: Array) -> Array:
    """Dense layers after the pool, and the length of the answer."""
    if spec.pool_norm:
        x = norm(spec, tensors, "pool_norm", x)
    for j, activation in enumerate(spec.head):
        x = activate(activation, head_linear(tensors, f"head.{j}.weight", x))
        if j == spec.head_norm:
            x = norm(spec, tensors, "head.norm", x)
    if spec.vocab_head:
        tied = "lm_head.weight" not in tensors
        x = head_linear(tensors, "embed.tokens" if tied else "lm_head.weight", x)
    if spec.normalize:
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x


def head_linear(tensors: Tensors, name: str, x: Array) -> Array:
    """A dense layer of the head: in float if its outputs are few."""
    weight, bias = tensors[name], tensors.get(f"{name.removesuffix('.weight')}.bias", 0.0)
    if len(weight) <= _FLOAT_HEAD_OUTPUTS and weight.dtype != np.int8:
        return np.asarray(x @ weight.T.astype(np.float64) + bias)
    return np.asarray(rounded(x) @ fake_quantized(tensors, name).T + bias)


def linear(tensors: Tensors, name: str, x: Array) -> Array:
    """X w^T + bias with the rows of x and of w in eight bits."""
    product: Array = rounded(x) @ fake_quantized(tensors, f"{name}.weight").T
    return product + tensors.get(f"{name}.bias", 0.0)


def to_bf16(x: Array) -> Array:
    """The nearest numbers with eight bits of significand, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return upper.astype(np.uint32).view(np.float32).astype(np.float64)


def rounded(x: Array) -> Array:
    """Rows in eight bits, one scale each: largest magnitude / 127, ties to even."""
    x = x.astype(np.float32)
    largest = np.abs(x).max(axis=1, keepdims=True)
    is_zero = largest < 2.0**-100
    inverse = np.float32(127) / np.where(is_zero, np.float32(1), largest)
    scale = np.where(is_zero, np.float32(0), largest / np.float32(127))
    return np.rint(x * inverse).astype(np.float64) * scale


def fake_quantized(tensors: Tensors, name: str) -> Array:
    """A weight as the kernels see it: `(out, in)`."""
    weight = tensors[name]
    if weight.dtype == np.int8:
        return np.asarray(weight.astype(np.float64) * tensors[f"{name}_scale"])
    single = weight.astype(np.float32)
    scale = np.abs(single).max(axis=1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.asarray(np.rint(single / scale).astype(np.float64) * scale)


def norm(spec: TransformerSpec, tensors: Tensors, name: str, x: Array) -> Array:
    """Layer or root-mean-square normalization of every row."""
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
