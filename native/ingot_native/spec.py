"""What a transformer is made of: sizes, choices, and the names of its tensors.

Ingot and its native engine each have this file, so that neither needs the other; a test compares
them. Tensors are float arrays, row-major; weights are `[out, in]`:

| name | sizes |
|---|---|
| `embed.tokens`, `embed.types` | `[vocab, hidden]`, `[token_types, hidden]` |
| `embed.positions` | `[position_offset + positions, hidden]` |
| `embed.norm.{weight,bias}` | `[hidden]` |
| `layers.{i}.attention_norm.{weight,bias}` | after attention, in a pre-norm block before it |
| `layers.{i}.mlp_norm.{weight,bias}` | the same of the MLP |
| `layers.{i}.q.{weight,bias}` | `[heads * head_dim, hidden]` |
| `layers.{i}.{k,v}.{weight,bias}` | `[kv_heads * head_dim, hidden]` |
| `layers.{i}.o.{weight,bias}` | `[hidden, heads * head_dim]` |
| `layers.{i}.{up,gate,down}.{weight,bias}` | `gate` only if gated |
| `final_norm.{weight,bias}`, `pool_norm.{weight,bias}` | `[hidden]` |
| `relative` | `[heads, 2 * positions - 1]`: bias by key - query + positions - 1 |
| `head.{j}.{weight,bias}`, `head.norm.{weight,bias}` | dense layers after the pool |
| `lm_head.weight` | `[vocab, hidden]`; absent when it is `embed.tokens` |

A bias that the network does not have is absent. A weight may come as integers: then `NAME.weight`
is int8 `[out, in]` and `NAME.weight_scale` float32 `[out, groups]`, groups dividing the inputs
evenly. So may the table of tokens: `embed.tokens` with `embed.tokens_scale`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Position = Literal["absolute", "rotary", "relative", "none"]
Norm = Literal["layer", "rms"]
Activation = Literal["none", "gelu", "gelu-tanh", "relu", "silu", "tanh"]
Pool = Literal["tokens", "mean", "first", "last"]
_LISTS = ("rotary_bases", "windows", "head")


@dataclass(frozen=True, slots=True)
class TransformerSpec:
    """An encoder or a decoder, in sizes and choices.

    Attributes:
        layers: Blocks of attention and MLP.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads; less than `heads` for grouped queries.
        head_dim: Width of a head.
        inner: Width inside the MLP.
        vocab: Rows of the token table.
        positions: Longest sequence.
        token_types: Rows of the table of token types; 0 if there is none.
        position: How order enters: a table added to the tokens, rotated queries and keys, a bias
            added to the scores (beside a table, where there is one: MPNet), or not at all.
        position_offset: Row of the position table of the first token: 2 for RoBERTa.
        padding_id: A token that takes no place: it reads row `position_offset - 1` and those after
            it are not moved on (RoBERTa, MPNet); -1 for none.
        norm: Layer normalization or root-mean-square normalization.
        norm_first: Pre-norm: each half of a block normalizes its input, not its output.
        first_attention_norm: Whether block 0 of a pre-norm network normalizes before its attention
            (ModernBERT's does not).
        embedding_norm: Whether the sum of the embeddings is normalized.
        final_norm: Whether the last block's output is normalized (pre-norm networks).
        activation: Of the MLP.
        gated: Whether the MLP is down(activation(gate(x)) * up(x)).
        causal: Whether a token sees earlier tokens only.
        epsilon: Of the norms.
        attention_scale: Factor of the scores, usually head_dim ** -0.5.
        rotary_dim: Leading columns of a head that are rotated, in pairs (d, d + rotary_dim / 2).
        rotary_bases: Per block, the base of the angles; empty unless `position` is `rotary`.
        windows: Per block, how far a token sees to either side; 0 for all. Empty means all for
            every block.
        pool: What leaves the body: every token, the mean over a sequence, its first or its last.
        pool_norm: Whether what the pool gives is normalized by `pool_norm` before the head.
        head: Activations of the dense layers after the pool, in order; empty for none.
        head_norm: Index of the head layer after which `head.norm` is applied; -1 for none.
        vocab_head: Whether the answer is a row of scores of the vocabulary for every token: a
            language model.
        normalize: Whether the answer is divided by its Euclidean length (after pool and head).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    positions: int
    token_types: int = 0
    position: Position = "absolute"
    position_offset: int = 0
    padding_id: int = -1
    norm: Norm = "layer"
    norm_first: bool = False
    first_attention_norm: bool = True
    embedding_norm: bool = True
    final_norm: bool = False
    activation: Activation = "gelu"
    gated: bool = False
    causal: bool = False
    epsilon: float = 1e-12
    attention_scale: float = 0.0
    rotary_dim: int = 0
    rotary_bases: tuple[float, ...] = ()
    windows: tuple[int, ...] = ()
    pool: Pool = "tokens"
    pool_norm: bool = False
    head: tuple[Activation, ...] = ()
    head_norm: int = -1
    vocab_head: bool = False
    normalize: bool = False

    def to_json(self) -> dict[str, Any]:  # fields are of many types
        """Return the JSON form."""
        facts = asdict(self)
        return facts | {name: list(facts[name]) for name in _LISTS}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "TransformerSpec":
        """Read the JSON form."""
        lists = {name: tuple(facts[name]) for name in _LISTS}
        return cls(**{**facts, **lists})
