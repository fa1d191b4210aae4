"""From float (or integer) tensors to the form that the kernels read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ingot_native.bf16 import Bf16, round_to_bf16
from ingot_native.codes import Codes, quantize_groups, quantize_rows
from ingot_native.errors import PackError
from ingot_native.layout import (
    DTYPE_NAMES,
    GROUPS,
    Packed,
    Slot,
    check_slots,
    check_spec,
    head_layers_of,
    matrices_of,
    norms_of,
    slots_of,
    tables_of,
)
from ingot_native.spec import TransformerSpec
from ingot_native.tiles import Weight, check_four_bits, joined, matrix_tensors, table_tensors

Array = NDArray[Any]  # float of any width, or int8
Bits = Literal[4, 8, 16] | None

ALIGNMENT = 64
# A layer with few outputs is a classifier: its answer is read as it is, and float costs little.
FLOAT_HEAD_OUTPUTS = 64


def aligned(values: Array) -> Array:
    """Return the array if it is contiguous and begins at a multiple of 64 bytes, else a copy."""
    values = np.ascontiguousarray(values)
    if values.ctypes.data % ALIGNMENT == 0:
        return values
    block = np.empty(values.nbytes + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    copy = block[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


@dataclass(frozen=True, slots=True)
class _Bits:
    """What matrices become: `bits` and `group` of `pack`."""

    bits: Bits
    group: int

    def of_floats(self, weight: NDArray[np.float32]) -> Codes:
        fits = (size for size in (self.group, GROUPS[-1]) if weight.shape[1] % size == 0)
        group = next(fits, 0) if self.bits == 4 else 0
        return quantize_groups(weight, group) if group else quantize_rows(weight)

    def of_integers(self, weight: Codes) -> Codes:
        small = weight.in_four_bits() if self.bits != 8 else None
        return small or weight.in_eight_bits()


class _Source:
    """The given tensors: each is fetched once, checked, and what nobody fetched is refused."""

    def __init__(self, tensors: Mapping[str, Array], bits: _Bits) -> None:
        self.tensors, self.bits = tensors, bits
        self.fetched: set[str] = set()

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if name not in self.tensors:
            raise PackError(f"Tensor {name!r} must be there; it is missing.")
        self.fetched.add(name)
        values = np.asarray(self.tensors[name])
        if values.dtype.kind != "f" or values.shape != shape:
            raise PackError(
                f"Tensor {name!r} must be float {list(shape)}; "
                f"got {values.dtype} {list(values.shape)}."
            )
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        if not np.isfinite(single).all():
            where = np.argwhere(~np.isfinite(single))[0].tolist()
            raise PackError(
                f"Tensor {name!r} must be finite; got {values[tuple(where)]} at {where}. "
                "Repair the weights before packing."
            )
        return single

    def optional(self, name: str, count: int) -> NDArray[np.float32]:
        return self.floats(name, (count,)) if name in self.tensors else np.zeros(count, np.float32)

    def matrices(self, sizes: Sequence[tuple[str, int]], inputs: int) -> list[Weight]:
        """Weights that are one matrix, in the bits that matrices get: names and outputs."""
        given = [self.integers(name, outputs, inputs) for name, outputs in sizes]
        if self.bits.bits == 16 and None in given:
            return [self.in_bf16(name, (outputs, inputs)) for name, outputs in sizes]
        return [
            self.bits.of_floats(self.floats(name, (outputs, inputs)))
            if codes is None
            else self.bits.of_integers(codes)
            for (name, outputs), codes in zip(sizes, given, strict=True)
        ]

    def in_bf16(self, name: str, shape: tuple[int, int]) -> Bf16:
        codes = self.integers(name, *shape)
        rounded = round_to_bf16(self.floats(name, shape) if codes is None else codes.values)
        if not rounded.is_finite:
            raise PackError(
                f"Tensor {name!r} must be below 3.3e38, the largest bf16; it is not. Scale it."
            )
        return rounded

    def integers(self, name: str, outputs: int, inputs: int) -> Codes | None:
        """A weight that is given as integers with their scales; None for one in float."""
        given = self.tensors.get(name)
        if given is None or np.asarray(given).dtype != np.int8:
            return None
        codes = np.asarray(given)
        self.fetched.add(name)
        if codes.shape != (outputs, inputs):
            raise PackError(
                f"Tensor {name!r} must be {[outputs, inputs]}; got {list(codes.shape)}."
            )
        groups = np.asarray(self.tensors.get(f"{name}_scale", np.zeros(0))).shape[-1:]
        count = groups[0] if groups and groups[0] and inputs % groups[0] == 0 else 1
        return Codes(codes, self.floats(f"{name}_scale", (outputs, count)))

    def refuse_rest(self) -> None:
        rest = sorted(set(self.tensors) - self.fetched)
        if rest:
            raise PackError(
                f"Tensor {rest[0]!r} has no place in this encoder ({len(rest)} such). "
                "Check its name, or the spec."
            )


def _head_names(spec: TransformerSpec, tensors: Mapping[str, Array]) -> list[str]:
    """Names of the weights of the head's layers; a language model may use its token table again."""
    names = [f"head.{j}.weight" for j in range(len(spec.head))]
    if spec.vocab_head:
        names.append("lm_head.weight" if "lm_head.weight" in tensors else "embed.tokens")
    return names


def _head_widths(names: list[str], tensors: Mapping[str, Array]) -> tuple[int, ...]:
    widths = []
    for name in names:
        weight = tensors.get(name)
        if weight is None or np.ndim(weight) != 2:
            raise PackError(f"Tensor {name!r} must be there with shape [out, in].")
        widths.append(int(np.shape(weight)[0]))
    return tuple(widths)


def _tokens(spec: TransformerSpec, source: _Source, *, in_float: bool) -> dict[str, Array]:
    shape = (spec.vocab, spec.hidden)
    if in_float:
        return {"embed.tokens.weight": source.floats("embed.tokens", shape)}
    given = source.integers("embed.tokens", *shape)
    if given is None and source.bits.bits == 16:
        return table_tensors("embed.tokens", source.in_bf16("embed.tokens", shape))
    if given is None:
        return table_tensors("embed.tokens", quantize_rows(source.floats("embed.tokens", shape)))
    if given.scales.shape[1] == 1 and given.is_small and spec.hidden % 2 == 0:
        given = replace(given, group=spec.hidden)
    return table_tensors("embed.tokens", given if given.group else given.in_eight_bits())


def _body(spec: TransformerSpec, source: _Source) -> dict[str, Array]:
    packed: dict[str, Array] = {}
    for name, parts, inputs in matrices_of(spec):
        pieces = source.matrices([(f"{part}.weight", n) for part, n in parts], inputs)
        bias = np.concatenate([source.optional(f"{part}.bias", n) for part, n in parts])
        packed |= matrix_tensors(name, joined(pieces), bias)
    return packed


def _head(
    spec: TransformerSpec, names: list[str], widths: tuple[int, ...], source: _Source
) -> dict[str, Array]:
    packed: dict[str, Array] = {}
    layers = list(head_layers_of(spec, widths))
    for j, (given, (name, outputs, inputs)) in enumerate(zip(names, layers, strict=True)):
        bias = source.optional(f"{given.removesuffix('.weight')}.bias", outputs)
        is_integer = np.asarray(source.tensors[given]).dtype == np.int8
        scores_vocabulary = spec.vocab_head and j + 1 == len(layers)
        if outputs <= FLOAT_HEAD_OUTPUTS and not is_integer and not scores_vocabulary:
            weight = source.floats(given, (outputs, inputs))
            packed |= {f"{name}.weight": weight, f"{name}.bias": bias}
        else:
            (weight,) = source.matrices([(given, outputs)], inputs)
            packed |= matrix_tensors(name, weight, bias)
    return packed


def pack(
    spec: TransformerSpec,
    tensors: Mapping[str, Array],
    *,
    float_tokens: bool = False,
    bits: Bits = None,
    group: int = 32,
) -> Packed:
    """Pack a transformer: weights in eight bits per output, four per group, or bf16.

    Integer weights keep their codes: in four bits where these are -8 to 7 and a scale is shared by
    a multiple of 32 neighbouring inputs, else in eight bits with one scale per output. Those that
    fit neither are quantized again. Queries, keys and values are one matrix: in four bits if all
    three are, in bf16 if any is. A token table in float gets eight bits per row, or bf16.

    Args:
        spec: What it is made of.
        tensors: Tensors by the names in `spec.py`.
        float_tokens: Keep the token table in float32.
        bits: What matrices in float become: 8 bits (None, too), 4 where a multiple of 32 inputs
            allows it, or 16 for bf16. With 8, integers of four bits are brought to eight.
        group: Inputs that share a scale when float becomes four bits: 32 or 128; where 128 do not
            divide the inputs, 32.

    Returns:
        The packed transformer; its digest depends on the arguments alone. A token table that also
        scores the vocabulary is there once, as the head.

    Raises:
        PackError: A tensor is missing, unknown, of another shape, or holds NaN or infinity; or the
            spec, `bits` or `group` is none. The message names the tensor or the field.
    """
    if bits not in (None, 4, 8, 16) or group not in GROUPS:
        raise PackError(f"bits must be 4, 8 or 16, group 32 or 128; got {bits!r} and {group!r}.")
    check_spec(spec)
    names = _head_names(spec, tensors)
    widths = _head_widths(names, tensors)
    source = _Source(tensors, _Bits(bits, group))
    packed: dict[str, Array] = {}
    if float_tokens or "embed.tokens" not in names:
        packed |= _tokens(spec, source, in_float=float_tokens)
    for name, shape in tables_of(spec, tensors).items():
        packed[name] = source.floats(name, shape)
    for name, width in norms_of(spec, widths):
        packed[f"{name}.weight"] = source.floats(f"{name}.weight", (width,))
        if f"{name}.bias" in tensors:
            packed[f"{name}.bias"] = source.floats(f"{name}.bias", (width,))
    packed |= _body(spec, source) | _head(spec, names, widths, source)
    source.refuse_rest()
    whole = Packed(spec, widths, {name: aligned(values) for name, values in packed.items()})
    check_packed(whole)
    return whole


def check_packed(packed: Packed) -> None:
    """Refuse a packed transformer whose tensors do not fit its spec.

    Raises:
        PackError: Names the field or the tensor.
    """
    check_spec(packed.spec)
    given = {
        name: Slot(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tensor.shape)
        for name, tensor in packed.tensors.items()
    }
    check_slots(slots_of(packed.spec, packed.head_widths, given), given)
    check_four_bits(packed.tensors)
