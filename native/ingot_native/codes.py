"""Weights as integers with scales."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot_native.layout import GROUPS

Array = NDArray[Any]  # float of any width, or integers

_LOW, _HIGH = -8, 7


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A weight in eight bits with a scale per row, or in four with a scale per group of a row.

    Attributes:
        codes: `(rows, inputs)`, int8; of four bits -8 to 7.
        scales: `(rows, 1)`, or `(rows, inputs / group)`; float32.
        group: Inputs that share a scale of four bits; 0 means eight bits.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    group: int = 0

    @property
    def is_small(self) -> bool:
        """Whether four bits can hold every code."""
        return bool(self.codes.min(initial=0) >= _LOW and self.codes.max(initial=0) <= _HIGH)

    @property
    def values(self) -> NDArray[np.float32]:
        """What the codes stand for: `(rows, inputs)`."""
        width = self.codes.shape[1] // self.scales.shape[1]
        return np.asarray(self.codes.astype(np.float32) * np.repeat(self.scales, width, axis=1))

    def in_eight_bits(self) -> "Codes":
        """Return one scale per row: codes that have one already are kept, others rounded again."""
        if self.scales.shape[1] == 1:
            return Codes(self.codes, self.scales)
        return quantize_rows(self.values)

    def in_four_bits(self) -> "Codes | None":
        """Return the same codes in groups of 128 or 32, or None if four bits cannot hold them."""
        inputs = self.codes.shape[1]
        width = inputs // self.scales.shape[1]
        group = next((size for size in GROUPS if width % size == 0), 0)
        if not group or not self.is_small or self.scales.min(initial=0) < 0:
            return None
        return Codes(self.codes, np.repeat(self.scales, width // group, axis=1), group)


def quantize_rows(weight: NDArray[np.float32]) -> Codes:
    """Symmetric eight-bit codes with one scale per row, s = max|w| / 127.

    Args:
        weight: Finite values `(rows, columns)`.

    Returns:
        Codes -127 to 127 and positive scales; a row of zeros gets 1.
    """
    scales = (np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
    scales[scales == 0] = 1
    codes = np.rint(weight / scales)
    return Codes(np.clip(codes, -127, 127).astype(np.int8), scales)


def quantize_groups(weight: NDArray[np.float32], group: int) -> Codes:
    """Symmetric four-bit codes with one scale per group of neighbouring inputs, s = max|w| / 7.

    Args:
        weight: Finite values `(rows, inputs)`.
        group: Inputs that share a scale; divides their number.

    Returns:
        Codes -7 to 7 and scales that `shares` keeps as they are; a group of zeros gets 0.
    """
    rows, inputs = weight.shape
    parts = weight.reshape(rows, inputs // group, group)
    ratios, largest = shares((np.abs(parts).max(axis=2) / np.float32(7)).astype(np.float32))
    scales = ratios.astype(np.float32) * largest[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(parts / scales[:, :, None])
    codes = np.where(scales[:, :, None] > 0, np.clip(codes, -7, 7), 0)
    return Codes(codes.reshape(rows, inputs).astype(np.int8), scales, group)


def shares(scales: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Split scales `(rows, groups)` into each row's largest and shares of it in half precision.

    Weights of any size fit: a share is off by 2^-11 of itself, or 2^-25 of the largest.

    Returns:
        Ratios `(rows, groups)`, 0 to 1, and positive scales `(rows,)`; a row of zeros gets 1.
    """
    largest = scales.max(axis=1)
    largest[largest == 0] = 1
    return (scales / largest[:, None]).astype(np.float16), largest
