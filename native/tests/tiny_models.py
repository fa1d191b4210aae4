"""Transformers of every kind, small enough for a test, with random weights."""

from dataclasses import replace

import numpy as np

from ingot_native import TransformerSpec
from ingot_native.layout import has_attention_norm

BERT = TransformerSpec(
    layers=2, hidden=48, heads=3, kv_heads=3, head_dim=16, inner=96, vocab=50, positions=40,
    token_types=2, pool="mean", normalize=True,
)  # fmt: skip
MODERN = replace(
    BERT, position="rotary", rotary_dim=16, rotary_bases=(10000.0, 100.0), windows=(0, 5),
    token_types=0, norm_first=True, first_attention_norm=False, final_norm=True, gated=True,
    epsilon=1e-5,
)  # fmt: skip
LLAMA = replace(
    BERT, heads=4, kv_heads=2, head_dim=12, position="rotary", rotary_dim=8,
    rotary_bases=(500.0, 500.0), token_types=0, norm="rms", norm_first=True, embedding_norm=False,
    final_norm=True, gated=True, activation="silu", causal=True, pool="last", epsilon=1e-6,
)  # fmt: skip

KINDS: dict[str, TransformerSpec] = {
    "bert": BERT,
    "bert-tokens": replace(BERT, pool="tokens", normalize=False),
    "roberta-classifier": replace(
        BERT, position_offset=2, token_types=0, pool="first", head=("tanh", "none"), normalize=False
    ),
    "roberta-with-padding-inside": replace(
        BERT, position_offset=2, padding_id=1, vocab=4, pool="tokens", normalize=False
    ),
    "language-model": replace(
        BERT, vocab=90, pool="tokens", causal=True, vocab_head=True, normalize=False
    ),
    "masked-words-of-the-table": replace(
        BERT, vocab=90, pool="tokens", head=("gelu",), head_norm=0, vocab_head=True, normalize=False
    ),
    "pooled-and-normed": replace(BERT, pool_norm=True, head=("tanh",)),
    "token-classifier": replace(BERT, pool="tokens", head=("none",), normalize=False),
    "masked-words": replace(
        BERT, pool="tokens", head=("gelu", "none"), head_norm=0, normalize=False, layers=1
    ),
    "mpnet": replace(BERT, position="relative", token_types=0, activation="relu"),
    "modern": MODERN,
    "modern-first": replace(MODERN, pool="first", first_attention_norm=True),
    "nomic": replace(MODERN, norm_first=False, final_norm=False, windows=(), activation="silu"),
    "llama": LLAMA,
    "llama-window": replace(LLAMA, windows=(3, 0), pool="tokens", normalize=False),
    "gpt2": replace(
        BERT, norm_first=True, embedding_norm=False, final_norm=True, causal=True, token_types=0,
        activation="gelu-tanh", pool="last", head=("none",), normalize=False,
    ),
    "no-position": replace(BERT, position="none", pool="first", attention_scale=0.1),
    "one-of-everything": replace(
        BERT, layers=1, heads=1, kv_heads=1, head_dim=2, hidden=2, inner=1, vocab=1, positions=1
    ),
}  # fmt: skip


def head_widths(spec: TransformerSpec) -> list[int]:
    """Outputs of the head's layers: the one before the last is wide enough to be packed."""
    if spec.vocab_head:
        return [spec.hidden] * len(spec.head)
    return [70, 5][-len(spec.head) :] if spec.head else []


def random_tensors(  # noqa: C901  # one line per tensor there may be
    spec: TransformerSpec, seed: int, widths: list[int] | None = None
) -> dict[str, np.ndarray]:
    """Weights that keep the signal's size, biases, and norms that are not 1."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def table(name: str, *shape: int, size: float = 1.0) -> None:
        tensors[name] = (rng.standard_normal(shape) * size).astype(np.float32)

    def dense(name: str, out: int, inputs: int, *, bias: bool = True) -> None:
        table(f"{name}.weight", out, inputs, size=inputs**-0.5)
        tensors[f"{name}.weight"] *= rng.uniform(0.5, 2.0, (out, 1)).astype(np.float32)
        if bias:
            table(f"{name}.bias", out, size=0.1)

    def norm(name: str, n: int) -> None:
        tensors[f"{name}.weight"] = rng.uniform(0.7, 1.3, n).astype(np.float32)
        if spec.norm == "layer" and spec.position != "rotary":
            table(f"{name}.bias", n, size=0.1)

    hidden, biased = spec.hidden, spec.position != "rotary"
    table("embed.tokens", spec.vocab, hidden)
    if spec.position in ("absolute", "relative"):
        table("embed.positions", spec.position_offset + spec.positions, hidden, size=0.3)
    if spec.token_types:
        table("embed.types", spec.token_types, hidden, size=0.3)
    if spec.position == "relative":
        table("relative", spec.heads, 2 * spec.positions - 1)
    if spec.embedding_norm:
        norm("embed.norm", hidden)
    for i in range(spec.layers):
        name = f"layers.{i}."
        if has_attention_norm(spec, i):
            norm(name + "attention_norm", hidden)
        norm(name + "mlp_norm", hidden)
        dense(name + "q", spec.heads * spec.head_dim, hidden, bias=biased)
        dense(name + "k", spec.kv_heads * spec.head_dim, hidden, bias=biased)
        dense(name + "v", spec.kv_heads * spec.head_dim, hidden, bias=biased)
        dense(name + "o", hidden, spec.heads * spec.head_dim, bias=biased)
        dense(name + "up", spec.inner, hidden, bias=biased)
        if spec.gated:
            dense(name + "gate", spec.inner, hidden, bias=biased)
        dense(name + "down", hidden, spec.inner, bias=biased)
    if spec.final_norm:
        norm("final_norm", hidden)
    if spec.pool_norm:
        norm("pool_norm", hidden)
    inputs = hidden
    widths = head_widths(spec) if widths is None else widths
    for j, width in enumerate(widths):
        dense(f"head.{j}", width, inputs)
        inputs = width
    if spec.head_norm >= 0:
        norm("head.norm", widths[spec.head_norm])
    return tensors


def random_sequences(spec: TransformerSpec, lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Token ids of sequences of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, spec.vocab, length) for length in lengths]
