"""What a spec means, in plain float64: one sequence at a time, slow and readable."""

from collections.abc import Mapping

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._functions import ACTIVATIONS
from ingot.models.transformer._heads import rotate
from ingot.models.transformer._weights import Matrix
from ingot.models.transformer.spec import TransformerSpec

Tensors = Mapping[str, Array]


def float_forward(
    spec: TransformerSpec, tensors: Tensors, ids: Array, types: Array | None = None
) -> Array:
    """Return the network's answer for one sequence without padding.

    Args:
        spec: The network's sizes and choices.
        tensors: Its weights; integers are taken times their scales.
        ids: Token ids `(length,)`.
        types: Token types `(length,)`; zeros if not given.

    Returns:
        `(length, width)` for tokens and language models, else `(width,)`; float64.
    """
    x = _embed(spec, tensors, np.asarray(ids), types)
    for layer in range(spec.layers):
        x = _block(spec, tensors, x, layer)
    if spec.final_norm:
        x = _norm(spec, tensors, "final_norm", x)
    x = _pool(spec, x)
    if spec.pool_norm:
        x = _norm(spec, tensors, "pool_norm", x)
    for at, activation in enumerate(spec.head):
        x = ACTIVATIONS[activation](_linear(tensors, f"head.{at}", x))
        if at == spec.head_norm:
            x = _norm(spec, tensors, "head.norm", x)
    if spec.vocab_head:
        tied = "lm_head.weight" not in tensors
        x = x @ _table(tensors).floats().T if tied else _linear(tensors, "lm_head", x)
    return x / np.sqrt((x**2).sum(-1, keepdims=True)) if spec.normalize else x


def _embed(spec: TransformerSpec, tensors: Tensors, ids: Array, types: Array | None) -> Array:
    x = _table(tensors).rows(ids).floats()
    if "embed.positions" in tensors:
        counted = ids != spec.padding_id
        places = np.where(counted, counted.cumsum() - 1, -1) + spec.position_offset
        x = x + tensors["embed.positions"][places]
    if spec.token_types:
        x = x + tensors["embed.types"][np.zeros_like(ids) if types is None else types]
    return _norm(spec, tensors, "embed.norm", x) if spec.embedding_norm else x


def _table(tensors: Tensors) -> Matrix:
    return Matrix(tensors["embed.tokens"], tensors.get("embed.tokens_scale"))


def _block(spec: TransformerSpec, tensors: Tensors, x: Array, layer: int) -> Array:
    """Compute one block, `(length, hidden)` to the same."""
    name = f"layers.{layer}"
    if not spec.norm_first:
        x = _norm(spec, tensors, f"{name}.attention_norm", x + _attend(spec, tensors, x, layer))
        return _norm(spec, tensors, f"{name}.mlp_norm", x + _mlp(spec, tensors, x, name))
    normed = x
    if layer or spec.first_attention_norm:
        normed = _norm(spec, tensors, f"{name}.attention_norm", x)
    x = x + _attend(spec, tensors, normed, layer)
    return x + _mlp(spec, tensors, _norm(spec, tensors, f"{name}.mlp_norm", x), name)


def _attend(spec: TransformerSpec, tensors: Tensors, x: Array, layer: int) -> Array:
    length, name = len(x), f"layers.{layer}"
    q, k, v = (
        _linear(tensors, f"{name}.{part}", x).reshape(length, -1, spec.head_dim).swapaxes(0, 1)
        for part in "qkv"
    )
    if spec.position == "rotary":
        q, k = (rotate(part, spec.rotary_dim, spec.rotary_bases[layer]) for part in (q, k))
    repeats = spec.heads // spec.kv_heads
    k, v = (np.repeat(part, repeats, axis=0) for part in (k, v))
    scores = spec.attention_scale * (q @ k.swapaxes(1, 2))
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    if spec.position == "relative":
        scores = scores + tensors["relative"][:, distance + spec.positions - 1]
    hidden = np.zeros(distance.shape, bool)
    if spec.causal:
        hidden |= distance > 0
    if spec.windows and spec.windows[layer]:
        hidden |= np.abs(distance) > spec.windows[layer]
    scores = np.where(hidden, -np.inf, scores)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return _linear(tensors, f"{name}.o", (shares @ v).swapaxes(0, 1).reshape(length, -1))


def _mlp(spec: TransformerSpec, tensors: Tensors, x: Array, name: str) -> Array:
    curve, up = ACTIVATIONS[spec.activation], _linear(tensors, f"{name}.up", x)
    inner = curve(_linear(tensors, f"{name}.gate", x)) * up if spec.gated else curve(up)
    return _linear(tensors, f"{name}.down", inner)


def _pool(spec: TransformerSpec, x: Array) -> Array:
    if spec.pool == "mean":
        mean: Array = x.mean(axis=0)
        return mean
    return {"first": x[:1], "last": x[-1:]}[spec.pool][0] if spec.pool != "tokens" else x


def _linear(tensors: Tensors, name: str, x: Array) -> Array:
    matrix = Matrix(tensors[f"{name}.weight"], tensors.get(f"{name}.weight_scale"))
    made = x @ matrix.floats().T
    bias = tensors.get(f"{name}.bias")
    return made if bias is None else made + bias.astype(np.float64)


def _norm(spec: TransformerSpec, tensors: Tensors, name: str, x: Array) -> Array:
    if spec.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + spec.epsilon)
    bias = tensors.get(f"{name}.bias", np.zeros(1))
    return x * tensors[f"{name}.weight"].astype(np.float64) + bias
