"""From float (or integer) tensors to the form that the kernels read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot_native.errors import PackError
from ingot_native.layout import (
    Packed,
    Slot,
    check_slots,
    check_spec,
    head_layers_of,
    matrices_of,
    norms_of,
    round_up,
    slots_of,
    tables_of,
)
from ingot_native.spec import TransformerSpec

Array = NDArray[Any]  # float of any width, or int8

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


class _Source:
    """The given tensors: each is fetched once, checked, and what nobody fetched is refused."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.tensors = tensors
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

    def rows8(self, name: str, outputs: int, inputs: int) -> tuple[NDArray[np.int8], Array]:
        """Codes `(outputs, inputs)` and scales `(outputs,)` of a weight."""
        given = self.tensors.get(name)
        if given is None or np.asarray(given).dtype != np.int8:
            return quantize_rows(self.floats(name, (outputs, inputs)))
        codes = np.asarray(given)
        self.fetched.add(name)
        if codes.shape != (outputs, inputs):
            raise PackError(
                f"Tensor {name!r} must be {[outputs, inputs]}; got {list(codes.shape)}."
            )
        groups = np.asarray(self.tensors.get(f"{name}_scale", np.zeros(0))).shape[-1:]
        count = groups[0] if groups and groups[0] and inputs % groups[0] == 0 else 1
        scales = self.floats(f"{name}_scale", (outputs, count))
        if count == 1:
            return codes, scales[:, 0]
        return quantize_rows(codes * np.repeat(scales, inputs // count, axis=1))

    def refuse_rest(self) -> None:
        rest = sorted(set(self.tensors) - self.fetched)
        if rest:
            raise PackError(
                f"Tensor {rest[0]!r} has no place in this encoder ({len(rest)} such). "
                "Check its name, or the spec."
            )


def quantize_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric eight-bit codes with one scale per row, s = max|w| / 127.

    Args:
        weight: Finite values `(rows, columns)`.

    Returns:
        Codes `(rows, columns)`, -127 to 127, and positive scales `(rows,)`; a row of zeros gets 1.
    """
    scales = (np.abs(weight).max(axis=1) / np.float32(127)).astype(np.float32)
    scales[scales == 0] = 1
    codes = np.rint(weight / scales[:, None])
    return np.clip(codes, -127, 127).astype(np.int8), scales


def _tiles(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """`(n, k)` to `(n_pad / 16, k_pad / 4, 16, 4)`, zeros where nothing was."""
    n, k = codes.shape
    padded = np.zeros((round_up(n, 16), round_up(k, 64)), np.int8)
    padded[:n, :k] = codes
    split = padded.reshape(padded.shape[0] // 16, 16, padded.shape[1] // 4, 4)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def _pad(values: Array) -> Array:
    return np.pad(values, (0, -len(values) % 16))


def _matrix(codes: NDArray[np.int8], scales: Array, bias: Array, name: str) -> dict[str, Array]:
    return {
        f"{name}.codes": _tiles(codes),
        f"{name}.scales": _pad(scales),
        f"{name}.sums": _pad(codes.sum(axis=1, dtype=np.int32)),
        f"{name}.bias": _pad(bias),
    }


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
    if in_float:
        shape = (spec.vocab, spec.hidden)
        return {"embed.tokens.weight": source.floats("embed.tokens", shape)}
    codes, scales = source.rows8("embed.tokens", spec.vocab, spec.hidden)
    return {"embed.tokens.codes": codes, "embed.tokens.scales": scales}


def _body(spec: TransformerSpec, source: _Source) -> dict[str, Array]:
    packed: dict[str, Array] = {}
    for name, parts, inputs in matrices_of(spec):
        pieces = [source.rows8(f"{part}.weight", outputs, inputs) for part, outputs in parts]
        codes = np.concatenate([piece[0] for piece in pieces])
        scales = np.concatenate([piece[1] for piece in pieces])
        bias = np.concatenate([source.optional(f"{part}.bias", n) for part, n in parts])
        packed |= _matrix(codes, scales, bias, name)
    return packed


def _head(
    spec: TransformerSpec, names: list[str], widths: tuple[int, ...], source: _Source
) -> dict[str, Array]:
    packed: dict[str, Array] = {}
    layers = head_layers_of(spec, widths)
    for given, (name, outputs, inputs) in zip(names, layers, strict=True):
        bias = source.optional(f"{given.removesuffix('.weight')}.bias", outputs)
        is_integer = np.asarray(source.tensors[given]).dtype == np.int8
        if outputs <= FLOAT_HEAD_OUTPUTS and not is_integer:
            weight = source.floats(given, (outputs, inputs))
            packed |= {f"{name}.weight": weight, f"{name}.bias": bias}
        else:
            packed |= _matrix(*source.rows8(given, outputs, inputs), bias, name)
    return packed


def pack(
    spec: TransformerSpec, tensors: Mapping[str, Array], *, float_tokens: bool = False
) -> Packed:
    """Pack a transformer: weights in eight bits per output, token table in eight bits per row.

    Args:
        spec: What it is made of.
        tensors: Tensors by the names in `spec.py`. Integer weights with one scale per output keep
            their codes; with more groups they are quantized again.
        float_tokens: Keep the token table in float32.

    Returns:
        The packed transformer; its digest depends on the arguments alone.

    Raises:
        PackError: A tensor is missing, unknown, of another shape, or holds NaN or infinity; or the
            spec is none. The message names the tensor or the field.
    """
    check_spec(spec)
    names = _head_names(spec, tensors)
    widths = _head_widths(names, tensors)
    source = _Source(tensors)
    packed = _tokens(spec, source, in_float=float_tokens)
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
    names = {"int8": "I8", "int32": "I32", "float32": "F32"}
    given = {
        name: Slot(names.get(str(tensor.dtype), str(tensor.dtype)), tensor.shape)
        for name, tensor in packed.tensors.items()
    }
    check_slots(slots_of(packed.spec, packed.head_widths, given), given)
