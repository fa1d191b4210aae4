"""Weights rounded to the nearest, some rows at a time: a large layer costs little memory.

Rows do not depend on one another, so the numbers are those of the whole layer at once. Blocks that
stay in the processor's cache are also four times as fast.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ingot.compress.quantize.groups import Granularity, group_scales, round_groups
from ingot.compress.quantize.qparams import power_ratio_db, weight_grid
from ingot.data.data import Array

BLOCK = 1 << 15  # weights at a time; the scales of 4 bits need eight doubles for each


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """Integers and what they stand for.

    Attributes:
        integers: `(rows, inputs)`, int8.
        scale: `(rows, groups)`: the scale of each group of neighbouring inputs.
        sqnr_db: Signal to quantization noise ratio.
    """

    integers: Array
    scale: Array
    sqnr_db: float


def round_nearest(weight: Array, bits: int, granularity: Granularity) -> Rounded:
    """Return a layer in groups, each with the scale whose squared error is least.

    Args:
        weight: `(rows, inputs)`, any layout; a row holds the weights of one output.
        bits: 4 or 8.
        granularity: What shares a scale.

    Raises:
        RecipeError: The granularity does not divide the layer.
    """
    height, width = granularity.groups(*weight.shape)
    parts = []
    for rows in _blocks(weight, height):
        block = np.ascontiguousarray(weight[rows])
        scale = group_scales(block, bits, granularity)
        integers = round_groups(block, scale, bits, hessian=None, how="nearest")
        parts.append((integers, scale[:, ::width].copy(), _powers(block, integers * scale)))
    return _joined(parts)


def round_table(table: Array) -> Rounded:
    """Return an embedding table `(rows, width)` in 8 bits, one scale per row.

    Raises:
        RecipeError: It holds NaN or infinity.
    """
    parts = []
    for rows in _blocks(table, 1):
        block = table[rows]
        grid = weight_grid(block, 0)
        integers, scale = grid.quantize(block), grid.scale.reshape(-1, 1)
        parts.append((integers, scale, _powers(block, integers * scale)))
    return _joined(parts)


def _blocks(weight: Array, height: int) -> Iterator[slice]:
    """Give runs of rows, each a multiple of `height`, of about `BLOCK` weights."""
    step = max(1, BLOCK // max(1, weight.shape[1] * height)) * height
    for start in range(0, weight.shape[0], step):
        yield slice(start, start + step)


def _powers(values: Array, restored: Array) -> tuple[float, float]:
    """Return the sums of squares of the values and of what rounding changed."""
    gap = values.astype(np.float64) - restored
    return float(np.square(values, dtype=np.float64).sum()), float(np.square(gap).sum())


def _joined(parts: list[tuple[Array, Array, tuple[float, float]]]) -> Rounded:
    integers, scales, powers = zip(*parts, strict=True)
    signal, noise = np.sum(powers, axis=0)
    return Rounded(
        np.concatenate(integers),
        np.concatenate(scales),
        power_ratio_db(float(signal), float(noise)),
    )
