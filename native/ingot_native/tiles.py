"""Weights in the tiles in which kernels read them: see `layout`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot_native.bf16 import Bf16
from ingot_native.codes import Codes, shares
from ingot_native.errors import PackError
from ingot_native.layout import round_up

Array = NDArray[Any]  # numbers of any kind
Weight = Codes | Bf16

_MIDDLE = 8  # codes of four bits are stored shifted by it
_ONE = 0x3C00  # 1 in float16: as whole numbers, 0 to 1 are those up to it, and nothing else is


def joined(parts: Sequence[Weight]) -> Weight:
    """Stack the rows of weights of one kind; integers in eight bits unless all are alike."""
    in_bf16 = [part.bits for part in parts if isinstance(part, Bf16)]
    if in_bf16:
        return Bf16(np.concatenate(in_bf16))
    codes = [part for part in parts if isinstance(part, Codes)]
    if len({part.group for part in codes}) > 1:
        codes = [part.in_eight_bits() for part in codes]
    return Codes(
        np.concatenate([part.codes for part in codes]),
        np.concatenate([part.scales for part in codes]),
        codes[0].group,
    )


def matrix_tensors(name: str, weight: Weight, bias: Array) -> dict[str, Array]:
    """Packed tensors of a matrix."""
    padded_bias = _pad(bias)
    if isinstance(weight, Bf16):
        return {f"{name}.bf16": _tiles(weight.bits, 32, 2), f"{name}.bias": padded_bias}
    if not weight.group:
        return {
            f"{name}.codes": _tiles(weight.codes, 64, 4),
            f"{name}.scales": _pad(weight.scales[:, 0]),
            f"{name}.sums": _pad(weight.codes.sum(axis=1, dtype=np.int32)),
            f"{name}.bias": padded_bias,
        }
    ratios, scales = shares(weight.scales)
    in_tiles = _pad(ratios).reshape(-1, 16, ratios.shape[1]).swapaxes(1, 2)
    return {
        f"{name}.codes4": _tiles4(weight.codes),
        f"{name}.ratios": np.ascontiguousarray(in_tiles),
        f"{name}.scales": _pad(scales),
        f"{name}.bias": padded_bias,
    }


def table_tensors(name: str, weight: Weight) -> dict[str, Array]:
    """Packed tensors of a table; integers have one scale per row, and four bits if grouped."""
    if isinstance(weight, Bf16):
        return {f"{name}.bf16": weight.bits}
    scales = np.ascontiguousarray(weight.scales[:, 0])
    if not weight.group:
        return {f"{name}.codes": weight.codes, f"{name}.scales": scales}
    left, right = np.split((weight.codes + _MIDDLE).astype(np.uint8), 2, axis=1)
    return {f"{name}.codes4": left | right << 4, f"{name}.scales": scales}


def _tiles(values: Array, step: int, together: int) -> Array:
    """`(n, k)` to `(n_pad / 16, k_pad / together, 16, together)`, zeros where nothing was.

    Args:
        values: Rows of a matrix.
        step: Inputs are filled up to a multiple of it.
        together: Neighbouring inputs that lie side by side.
    """
    n, k = values.shape
    padded = np.zeros((round_up(n, 16), round_up(k, step)), values.dtype)
    padded[:n, :k] = values
    split = padded.reshape(padded.shape[0] // 16, 16, padded.shape[1] // together, together)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def _tiles4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """`(n, k)` to `(n_pad / 16, k / 8, 16, 4)`, stored zeros where nothing was."""
    n, k = codes.shape
    stored = np.full((round_up(n, 16), k), _MIDDLE, np.uint8)
    stored[:n] = codes + _MIDDLE
    split = stored.reshape(-1, 16, k // 8, 2, 4).transpose(3, 0, 2, 1, 4)
    return np.ascontiguousarray(split[0] | split[1] << 4)


def _pad(values: Array) -> Array:
    """Rows up to the next multiple of 16, zero."""
    rest = [(0, 0)] * (values.ndim - 1)
    return np.pad(values, [(0, -len(values) % 16), *rest])


def check_four_bits(tensors: Mapping[str, Array]) -> None:
    """Refuse scales of matrices in four bits that no weights have.

    Raises:
        PackError: A ratio is outside 0 to 1, or a scale is not finite; names the tensor.
    """
    for name, tensor in tensors.items():
        if name.endswith(".ratios"):
            is_wrong = tensor.view(np.uint16) > _ONE
            rule = "be between 0 and 1"
        elif name.endswith(".scales") and f"{name.removesuffix('.scales')}.codes4" in tensors:
            is_wrong = ~np.isfinite(tensor.astype(np.float32, copy=False))
            rule = "be finite"
        else:
            continue
        if is_wrong.any():
            where = np.argwhere(is_wrong)[0].tolist()
            raise PackError(f"Tensor {name!r} must {rule}; got {tensor[tuple(where)]} at {where}.")
