"""Names, types and shapes of packed tensors, and which specs there can be.

A matrix `[n, k]`, of a block (`qkv` is its three parts one after another) or of the head, lies in
tiles of sixteen outputs; `n_pad` is n rounded up to 16, and what is added is zero. It has one of
three forms:

| eight bits | type | sizes |
|---|---|---|
| `NAME.codes` | I8 | `[n_pad / 16, k_pad / 4, 16, 4]`, k_pad: k rounded up to 64 |
| `NAME.scales`, `NAME.sums`, `NAME.bias` | F32, I32, F32 | `[n_pad]`; sums are of the codes |

| four bits | type | sizes |
|---|---|---|
| `NAME.codes4` | U8 | `[n_pad / 16, k / 8, 16, 4]`, two codes in a byte, each stored + 8 |
| `NAME.ratios` | F16 | `[n_pad / 16, k / group, 16]`, 0 to 1 |
| `NAME.scales`, `NAME.bias` | F32 | `[n_pad]` |

| bf16 | type | sizes |
|---|---|---|
| `NAME.bf16` | BF16 | `[n_pad / 16, k_pad / 2, 16, 2]`, k_pad: k rounded up to 32 |
| `NAME.bias` | F32 | `[n_pad]` |

Of byte (b, o, j) the low half is input 8 b + j, the high half input 8 b + 4 + j. A group has 32 or
128 inputs, which divide k; its scale is its ratio times its output's scale. The last dense layers
of a classifier are float: `head.{j}.weight` `[n, k]` and `head.{j}.bias` `[n]`. The scores of a
vocabulary are the last `head.{j}`, in one of the three forms.

The token table is one of `embed.tokens.weight` F32 `[vocab, hidden]`; `embed.tokens.bf16` BF16
`[vocab, hidden]`; `embed.tokens.codes` I8 `[vocab, hidden]`; `embed.tokens.codes4` U8 `[vocab,
hidden / 2]`, byte b of a row holding column b in its low half and column b + hidden / 2 in its high
half, stored + 8. The integers have `embed.tokens.scales` F32 `[vocab]`. Where the vocabulary's
scores are made of the table itself ("tied"), there is none of them: a token's row is read from the
head. All else is F32 as in `spec.py`.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ingot_native.errors import PackError
from ingot_native.spec import Activation, Norm, Pool, Position, TransformerSpec

POSITIONS: tuple[str, ...] = get_args(Position)
NORMS: tuple[str, ...] = get_args(Norm)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
POOLS: tuple[str, ...] = get_args(Pool)

DTYPES: dict[str, np.dtype[np.generic]] = {
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),  # numpy has none: its bits
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
GROUPS = (128, 32)  # inputs that may share a scale in four bits

_WIDEST = 65536  # integer sums of a row stay below 2^31 up to here
_LONGEST = 1 << 20
_MOST_HEAD_LAYERS = 64

# Smallest and largest value of each whole number of a spec.
_RANGES: dict[str, tuple[int, int]] = {
    "layers": (1, 1024),
    "hidden": (1, _WIDEST),
    "heads": (1, _WIDEST),
    "kv_heads": (1, _WIDEST),
    "head_dim": (1, 4096),
    "inner": (1, _WIDEST),
    "vocab": (1, 1 << 28),
    "positions": (1, _LONGEST),
    "token_types": (0, _WIDEST),
    "position_offset": (0, _LONGEST),
    "padding_id": (-1, (1 << 28) - 1),
    "rotary_dim": (0, 4096),
    "head_norm": (-1, _MOST_HEAD_LAYERS - 1),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "position": POSITIONS,
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "pool": POOLS,
}
_FLAGS = tuple(field.name for field in fields(TransformerSpec) if field.type is bool)


@dataclass(frozen=True, slots=True)
class Slot:
    """Type and shape that a packed tensor must have.

    Attributes:
        dtype: A name of `DTYPES`.
        shape: Sizes, slowest first.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Packed:
    """A transformer in the form that the kernels read.

    Attributes:
        spec: What it is made of.
        head_widths: Outputs of each dense layer of the head.
        tensors: Packed tensors by name, as `slots_of` lists them.
    """

    spec: TransformerSpec
    head_widths: tuple[int, ...]
    tensors: dict[str, NDArray[np.generic]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def round_up(value: int, multiple: int) -> int:
    """Return the next multiple, or the value if it is one."""
    return -(-value // multiple) * multiple


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise PackError(f"spec.{name} must be a whole number, {low} to {high}; got {value!r}.")


def _number(name: str, value: object, *, above: float, below: float = 1e30) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or not above <= value <= below:  # type: ignore[operator]  # checked by ok
        raise PackError(f"spec.{name} must be a number, {above} to {below}; got {value!r}.")


def _list(name: str, value: object, lengths: Collection[int]) -> tuple[object, ...]:
    if not isinstance(value, tuple) or len(value) not in lengths:
        counts = " or ".join(str(length) for length in lengths)
        raise PackError(f"spec.{name} must be a list of {counts} entries; got {value!r}.")
    return value


def check_spec(spec: TransformerSpec) -> None:
    """Refuse a spec that no transformer has.

    Args:
        spec: Anything with the fields of a spec, of whatever types: it may come from a file.

    Raises:
        PackError: Names the field, what it must be and what it is.
    """
    for name, (low, high) in _RANGES.items():
        _whole(name, getattr(spec, name), low, high)
    for name, choices in _CHOICES.items():
        if getattr(spec, name) not in choices:
            value = getattr(spec, name)
            raise PackError(f"spec.{name} must be one of {', '.join(choices)}; got {value!r}.")
    for name in _FLAGS:
        if not isinstance(getattr(spec, name), bool):
            raise PackError(f"spec.{name} must be true or false; got {getattr(spec, name)!r}.")
    for name in ("epsilon", "attention_scale"):
        _number(name, getattr(spec, name), above=0.0)
    if spec.heads % spec.kv_heads:
        raise PackError(f"spec.kv_heads must divide heads ({spec.heads}); got {spec.kv_heads}.")
    if spec.padding_id >= 0 and not (spec.padding_id < spec.vocab and spec.position_offset):
        raise PackError(
            f"spec.padding_id must be below vocab ({spec.vocab}), and position_offset above 0; "
            f"got {spec.padding_id} and {spec.position_offset}."
        )
    _whole("heads * head_dim", spec.heads * spec.head_dim, 1, _WIDEST)
    _check_lists(spec)


def _check_lists(spec: TransformerSpec) -> None:
    for window in _list("windows", spec.windows, (0, spec.layers)):
        _whole("windows", window, 0, _LONGEST)
    is_rotary = spec.position == "rotary"
    for base in _list("rotary_bases", spec.rotary_bases, (spec.layers if is_rotary else 0,)):
        _number("rotary_bases", base, above=1e-6)
    if is_rotary and (spec.rotary_dim % 2 or not 2 <= spec.rotary_dim <= spec.head_dim):
        raise PackError(
            f"spec.rotary_dim must be even and at most head_dim ({spec.head_dim}); "
            f"got {spec.rotary_dim}."
        )
    head = _list("head", spec.head, range(_MOST_HEAD_LAYERS))
    for activation in head:
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise PackError(f"spec.head must name activations ({known}); got {activation!r}.")
    if spec.head_norm >= len(head):
        raise PackError(f"spec.head_norm must be below {len(head)}; got {spec.head_norm}.")


def head_of(spec: TransformerSpec) -> tuple[str, ...]:
    """Activations of the dense layers after the pool; the vocabulary's scores are the last."""
    return (*spec.head, "none") if spec.vocab_head else spec.head


def has_attention_norm(spec: TransformerSpec, layer: int) -> bool:
    """Whether a block has a norm at its attention."""
    return not spec.norm_first or spec.first_attention_norm or layer > 0


def norms_of(spec: TransformerSpec, head_widths: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Yield name and width of every norm."""
    if spec.embedding_norm:
        yield "embed.norm", spec.hidden
    for i in range(spec.layers):
        if has_attention_norm(spec, i):
            yield f"layers.{i}.attention_norm", spec.hidden
        yield f"layers.{i}.mlp_norm", spec.hidden
    if spec.final_norm:
        yield "final_norm", spec.hidden
    if spec.pool_norm:
        yield "pool_norm", spec.hidden
    if spec.head_norm >= 0:
        yield "head.norm", head_widths[spec.head_norm]


def matrices_of(spec: TransformerSpec) -> Iterator[tuple[str, tuple[tuple[str, int], ...], int]]:
    """Yield every matrix of the body: packed name, its parts with their outputs, inputs."""
    q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for i in range(spec.layers):
        layer = f"layers.{i}."
        parts = ((layer + "q", q_width), (layer + "k", kv_width), (layer + "v", kv_width))
        yield layer + "qkv", parts, spec.hidden
        yield layer + "o", ((layer + "o", spec.hidden),), q_width
        for name in ("gate", "up") if spec.gated else ("up",):
            yield layer + name, ((layer + name, spec.inner),), spec.hidden
        yield layer + "down", ((layer + "down", spec.hidden),), spec.inner


def head_layers_of(
    spec: TransformerSpec, head_widths: tuple[int, ...]
) -> Iterator[tuple[str, int, int]]:
    """Yield name, outputs and inputs of every dense layer of the head."""
    inputs = spec.hidden
    for j, width in enumerate(head_widths):
        yield f"head.{j}", width, inputs
        inputs = width


def tables_of(spec: TransformerSpec, present: Collection[str]) -> dict[str, tuple[int, int]]:
    """Shapes of the float tables; a relative network may have one of positions too."""
    tables = {}
    if spec.position == "absolute" or "embed.positions" in present:
        tables["embed.positions"] = (spec.position_offset + spec.positions, spec.hidden)
    if spec.token_types:
        tables["embed.types"] = (spec.token_types, spec.hidden)
    if spec.position == "relative":
        tables["relative"] = (spec.heads, 2 * spec.positions - 1)
    return tables


def _matrix_slots(
    name: str, outputs: int, inputs: int, present: Mapping[str, Slot]
) -> dict[str, Slot]:
    n, k = round_up(outputs, 16), round_up(inputs, 64)
    if f"{name}.bf16" in present:
        tiles = Slot("BF16", (n // 16, round_up(inputs, 32) // 2, 16, 2))
        return {f"{name}.bf16": tiles, f"{name}.bias": Slot("F32", (n,))}
    each = {f"{name}.scales": Slot("F32", (n,)), f"{name}.bias": Slot("F32", (n,))}
    if f"{name}.codes4" not in present:
        codes = Slot("I8", (n // 16, k // 4, 16, 4))
        return each | {f"{name}.codes": codes, f"{name}.sums": Slot("I32", (n,))}
    group = _group_of(name, inputs, present)
    return each | {
        f"{name}.codes4": Slot("U8", (n // 16, inputs // 8, 16, 4)),
        f"{name}.ratios": Slot("F16", (n // 16, inputs // group, 16)),
    }


def _group_of(name: str, inputs: int, present: Mapping[str, Slot]) -> int:
    """Inputs that share a scale, as the shape of the ratios says."""
    fitting = [group for group in GROUPS if inputs % group == 0]
    if not fitting:
        raise PackError(
            f"A matrix in four bits must have a multiple of {GROUPS[-1]} inputs; "
            f"{name!r} has {inputs}. Pack it in eight bits."
        )
    ratios = present.get(f"{name}.ratios")
    counts = ratios.shape[1:2] if ratios is not None else ()
    return next((group for group in fitting if counts == (inputs // group,)), fitting[-1])


def is_tied(spec: TransformerSpec, head_widths: tuple[int, ...], present: Collection[str]) -> bool:
    """Whether a token's row is read from the head that scores the vocabulary."""
    if not spec.vocab_head or any(name.startswith("embed.tokens.") for name in present):
        return False
    inputs = (spec.hidden, *head_widths)[-2]
    return head_widths[-1] == spec.vocab and inputs == spec.hidden


def _token_slots(
    spec: TransformerSpec, head_widths: tuple[int, ...], present: Collection[str]
) -> dict[str, Slot]:
    if is_tied(spec, head_widths, present):
        return {}
    for form, dtype in (("weight", "F32"), ("bf16", "BF16")):
        if f"embed.tokens.{form}" in present:
            return {f"embed.tokens.{form}": Slot(dtype, (spec.vocab, spec.hidden))}
    slots = {"embed.tokens.scales": Slot("F32", (spec.vocab,))}
    if "embed.tokens.codes4" in present and spec.hidden % 2 == 0:
        return slots | {"embed.tokens.codes4": Slot("U8", (spec.vocab, spec.hidden // 2))}
    return slots | {"embed.tokens.codes": Slot("I8", (spec.vocab, spec.hidden))}


def slots_of(
    spec: TransformerSpec, head_widths: tuple[int, ...], present: Mapping[str, Slot]
) -> dict[str, Slot]:
    """Every packed tensor of a transformer.

    Args:
        spec: A checked spec.
        head_widths: Outputs of each dense layer of the head.
        present: What is there: some tensors may be absent or come in one of several forms.

    Returns:
        Type and shape by name.

    Raises:
        PackError: `head_widths` does not fit the spec, or a matrix in four bits has no groups.
    """
    count = len(head_of(spec))
    if len(head_widths) != count:
        raise PackError(f"head_widths must have {count} entries; got {head_widths!r}.")
    for j, width in enumerate(head_widths):
        _whole("head_widths", width, 1, 1 << 24 if j + 1 == len(head_widths) else _WIDEST)
    slots = {name: Slot("F32", shape) for name, shape in tables_of(spec, present).items()}
    slots |= _token_slots(spec, head_widths, present)
    for name, width in norms_of(spec, head_widths):
        slots[f"{name}.weight"] = Slot("F32", (width,))
        if spec.norm == "layer" and f"{name}.bias" in present:
            slots[f"{name}.bias"] = Slot("F32", (width,))
    for name, parts, inputs in matrices_of(spec):
        slots |= _matrix_slots(name, sum(outputs for _, outputs in parts), inputs, present)
    for j, (name, outputs, inputs) in enumerate(head_layers_of(spec, head_widths)):
        scores_vocabulary = spec.vocab_head and j + 1 == count
        if f"{name}.weight" in present and not scores_vocabulary:
            slots[f"{name}.weight"] = Slot("F32", (outputs, inputs))
            slots[f"{name}.bias"] = Slot("F32", (outputs,))
        else:
            slots |= _matrix_slots(name, outputs, inputs, present)
    return slots


def check_slots(slots: dict[str, Slot], given: dict[str, Slot]) -> None:
    """Refuse tensors that are missing, unknown, or of another type or shape.

    Raises:
        PackError: Names the tensor.
    """
    for name in slots:
        if name not in given:
            raise PackError(f"Tensor {name!r} must be there; it is missing.")
    for name, slot in given.items():
        if name not in slots:
            raise PackError(f"Tensor {name!r} has no place in this transformer. Remove it.")
        if slot != slots[name]:
            want = slots[name]
            raise PackError(
                f"Tensor {name!r} must be {want.dtype} {list(want.shape)}; "
                f"got {slot.dtype} {list(slot.shape)}."
            )
