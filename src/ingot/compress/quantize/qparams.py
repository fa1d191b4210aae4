"""Scale and zero point: how real numbers map to small integers, and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from ingot.core.errors import RecipeError
from ingot.data.data import Array

FloatArray = NDArray[np.float32]
BLOCK = 1 << 16  # values at a time
LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, slots=True, eq=False)
class QParams:
    """An integer grid, `x = scale * (q - zero_point)`.

    Attributes:
        scale: Step between neighbouring values, positive: `()` per tensor or `(channels,)`.
        zero_point: The integer that stands for 0.0, same shape, in `dtype`.
        dtype: `uint8` or `int8`.
        axis: The channel axis, or None when one grid serves the whole tensor.
        narrow: Whether the lowest integer is unused, so that the grid is symmetric (-127 to 127).
    """

    scale: FloatArray
    zero_point: Array
    dtype: str = "uint8"
    axis: int | None = None
    narrow: bool = False

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer of the grid."""
        low, high = LIMITS[self.dtype]
        return low + self.narrow, high

    def quantize(self, values: Array) -> Array:
        """Return the nearest integers, clipped to the grid; ties go to even, as engines do."""
        scale, zero = self._aligned(values.ndim)
        low, high = self.limits
        integers = np.empty(values.shape, self.dtype)
        for part in _parts(values):
            steps = np.rint(values[part] / self._of(scale, part)) + self._of(zero, part)
            integers[part] = np.clip(steps, low, high)
        return integers

    def dequantize(self, integers: Array) -> FloatArray:
        """Return the real values that these integers stand for."""
        scale, zero = self._aligned(integers.ndim)
        values = np.empty(integers.shape, np.float32)
        for part in _parts(integers):
            values[part] = (integers[part] - self._of(zero, part)) * self._of(scale, part)
        return values

    def _of(self, numbers: Array, part: "slice | EllipsisType") -> Array:
        """Return the scales or zero points, aligned, of a part of the values."""
        return numbers[part] if self.axis is not None and len(numbers) > 1 else numbers

    def _aligned(self, rank: int) -> tuple[Array, Array]:
        shape = [1] * rank
        if self.axis is not None:
            shape[self.axis] = -1
        scale = self.scale.astype(np.float64)
        zero = self.zero_point.astype(np.int64)
        return (scale, zero) if self.axis is None else (scale.reshape(shape), zero.reshape(shape))


def affine(low: float | Array, high: float | Array, *, axis: int | None = None) -> QParams:
    """Return the uint8 grid that covers `low` to `high` and holds 0.0 exactly.

    `s = (hi - lo) / 255`, `z = clip(-round(lo / s), 0, 255)` once the range holds 0.
    A constant zero (`low == high == 0`) gets scale 1.

    Args:
        low: Smallest value, or one per channel.
        high: Largest value, same shape.
        axis: Channel axis if ranges are per channel.

    Raises:
        RecipeError: A bound is not finite or `low > high`.

    Examples:
        >>> grid = affine(-1.3974, 1.4707)
        >>> round(float(grid.scale), 4), int(grid.zero_point)
        (0.0112, 124)
    """
    lo, hi = _checked(low, high)
    scale = _positive((hi - lo) / 255)
    zero = np.clip(-np.rint(lo / scale), 0, 255)
    return QParams(scale.astype(np.float32), zero.astype(np.uint8), "uint8", axis)


def symmetric(
    low: float | Array,
    high: float | Array,
    *,
    dtype: str = "int8",
    narrow: bool = True,
    axis: int | None = None,
) -> QParams:
    """Return the grid centred on 0 that covers `low` to `high`.

    `s = max(|lo|, |hi|) / ((qmax - qmin) / 2)`: 127 for the narrow int8 range that integer kernels
    want, 127.5 for the full one.

    Raises:
        RecipeError: A bound is not finite or `low > high`.

    Examples:
        >>> grid = symmetric(-1.395982, 1.170433, dtype="uint8", narrow=False)
        >>> round(float(grid.scale), 4), int(grid.zero_point)
        (0.0109, 128)
    """
    lo, hi = _checked(low, high)
    qmin, qmax = LIMITS[dtype]
    half = (qmax - qmin - narrow) / 2
    scale = _positive(np.maximum(-lo, hi) / half)
    zero = np.full(scale.shape, 128 if dtype == "uint8" else 0, dtype)
    return QParams(scale.astype(np.float32), zero, dtype, axis, narrow)


def weight_grid(weight: Array, axis: int | None, *, floor: Array | float = 0.0) -> QParams:
    """Return the symmetric int8 grid (-127 to 127) of constant weights.

    Args:
        weight: Any shape, float.
        axis: Output-channel axis for one scale per channel; None for one scale.
        floor: Smallest scale allowed, e.g. so that an int32 bias on the product grid fits.

    Returns:
        Scales of shape `()` or `(channels,)`; a dead channel (all zero) gets scale 1.

    Raises:
        RecipeError: The weights hold NaN or infinity.

    References:
        Nagel et al., A White Paper on Neural Network Quantization, 2021. arXiv:2106.08295
    """
    other = (
        None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    )
    peak = np.abs(weight).max(axis=other) if weight.size else np.zeros(())
    grid = symmetric(-peak, peak, axis=axis)
    scale = np.maximum(grid.scale, np.asarray(floor, np.float32)).astype(np.float32)
    return QParams(scale, grid.zero_point, "int8", axis, narrow=True)


def sqnr_db(values: Array, restored: Array) -> float:
    """Return the signal to quantization noise ratio, `20 log10(|x| / |x - x^|)` in dB.

    An exact copy gives 200: beyond what float32 can tell, and still a number JSON can hold.
    """
    signal = noise = 0.0
    for part in _parts(values):
        gap = values[part] - np.asarray(restored[part], np.float64)
        signal += float(np.square(values[part], dtype=np.float64).sum())
        noise += float(np.square(gap).sum())
    return power_ratio_db(signal, noise)


def power_ratio_db(signal: float, noise: float) -> float:
    """Return `10 log10(signal / noise)` of two sums of squares in dB; at most 200."""
    if noise == 0 or signal == 0:
        return 200.0 if noise == 0 else 0.0
    return min(200.0, 10 * float(np.log10(signal / noise)))


def _parts(values: Array) -> "Iterator[slice | EllipsisType]":
    """Give runs along the first axis: what is computed in double precision stays small."""
    if values.size <= BLOCK:
        yield ...
        return
    step = max(1, BLOCK * len(values) // values.size)
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def _checked(low: float | Array, high: float | Array) -> tuple[Array, Array]:
    lo, hi = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all() and (lo <= hi).all()):
        raise RecipeError(
            f"A range must be finite with low <= high; got {low!r} to {high!r}. "
            "Look for NaN or infinity in the weights or the calibration data."
        )
    return np.minimum(lo, 0.0), np.maximum(hi, 0.0)


def _positive(scale: Array) -> Array:
    tiny = scale < np.finfo(np.float32).tiny
    return np.where(tiny, 1.0, scale)
