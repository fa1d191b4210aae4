"""Ranges of activations without activations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ingot.compress.data_free.inputs import LayerInputs
from ingot.compress.data_free.precondition import unclipped
from ingot.compress.quantize.observers import Range
from ingot.data.data import Array

if TYPE_CHECKING:
    import torch

SATURATED = 1e-3  # share of values at an extreme that makes it a bound, not a rare event
# Pixels are bounded: normalized by the usual constants, images end before 3.
INPUT_DEVIATIONS = 4.0


def activation_ranges(
    source: LayerInputs,
    tensors: Sequence[str],
    deviations: float,
    *,
    rows: int,
    generator: "torch.Generator",
) -> dict[str, Range]:
    """Return the range of each tensor: the widest channel's mean +- `deviations` of its std.

    Outputs of batch norms follow from the statistics, the network's inputs are taken to be
    normalized, and others, such as residual sums, are drawn. Ranges behind ReLU and Clip are those
    of what enters, clipped: the spread of what is left there says little about its tail.

    Args:
        source: Draws tensors.
        tensors: Names of tensors.
        deviations: Standard deviations on each side; 6 clips one normal value in 10^9. At most 4
            for inputs of the network.
        rows: Examples that are drawn.
        generator: The source of randomness.

    References:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
        2019, section 5. arXiv:1906.04721
    """
    found: dict[str, Range] = {}
    for name in tensors:
        inner, floor, top = unclipped(source.graph, name)
        if inner in source.statistics:
            normal = source.statistics[inner]
            low, high = _bounds(normal.mean, normal.std, deviations)
        elif inner not in source.graph.maker:
            reach = min(deviations, INPUT_DEVIATIONS)
            low, high = -reach, reach
        else:
            values = source.sample([inner], rows, generator)[inner].numpy()
            low, high = drawn_range(values, deviations)
        found[name] = float(np.clip(low, floor, top)), float(np.clip(high, floor, top))
    return found


def drawn_range(values: Array, deviations: float) -> Range:
    """Return the range of a tensor from draws `(rows, channels, ...)`.

    A value at which draws pile up, such as the 0 of an average behind a ReLU, is a bound.
    """
    axes = tuple(i for i in range(values.ndim) if i != 1) if values.ndim > 1 else None
    mean, std = values.mean(axis=axes, dtype=np.float64), values.std(axis=axes, dtype=np.float64)
    low, high = _bounds(mean, std, deviations)
    least, most = float(values.min()), float(values.max())
    if float((values == least).mean()) > SATURATED:
        low = max(low, least)
    if float((values == most).mean()) > SATURATED:
        high = min(high, most)
    return low, max(low, high)


def _bounds(mean: Array, std: Array, deviations: float) -> Range:
    return float((mean - deviations * std).min()), float((mean + deviations * std).max())
