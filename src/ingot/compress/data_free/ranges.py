"""Ranges of activations without activations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ingot.compress.data_free.inputs import Gaussian, LayerInputs
from ingot.compress.data_free.precondition import known_normal
from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize.observers import Range
from ingot.data.data import Array

if TYPE_CHECKING:
    import torch

SATURATED = 1e-3  # share of values at an extreme that makes it a bound, not a rare event


def activation_ranges(
    source: LayerInputs,
    tensors: Sequence[str],
    deviations: float,
    *,
    rows: int,
    generator: "torch.Generator",
) -> dict[str, Range]:
    """Return the range of each tensor: the widest channel's mean +- `deviations` of its std.

    Outputs of batch norms, and ReLU and Clip of them, follow from the statistics. Others, such as
    residual sums, are drawn; a value at which draws pile up is a bound, so that sums after a ReLU
    start at 0.

    Args:
        source: Draws tensors.
        tensors: Names of tensors.
        deviations: Standard deviations on each side; 6 clips one normal value in 10^9.
        rows: Examples that are drawn.
        generator: The source of randomness.

    References:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
        2019, section 5. arXiv:1906.04721
    """
    found = {}
    for name in tensors:
        known = _known_range(source.graph, source.statistics, name, deviations)
        if known is None:
            values = source.sample([name], rows, generator)[name].numpy()
            known = drawn_range(values, deviations)
        found[name] = known
    return found


def drawn_range(values: Array, deviations: float) -> Range:
    """Return the range of a tensor from draws `(rows, channels, ...)`."""
    axes = tuple(i for i in range(values.ndim) if i != 1) if values.ndim > 1 else None
    mean, std = values.mean(axis=axes, dtype=np.float64), values.std(axis=axes, dtype=np.float64)
    low, high = float((mean - deviations * std).min()), float((mean + deviations * std).max())
    least, most = float(values.min()), float(values.max())
    if float((values == least).mean()) > SATURATED:
        low = max(low, least)
    if float((values == most).mean()) > SATURATED:
        high = min(high, most)
    return low, max(low, high)


def _known_range(
    graph: Graph, statistics: Mapping[str, Gaussian], tensor: str, deviations: float
) -> Range | None:
    found = known_normal(graph, statistics, tensor)
    if found is None:
        return None
    normal, low, high = found
    least = float((normal.mean - deviations * normal.std).min())
    most = float((normal.mean + deviations * normal.std).max())
    return float(np.clip(least, low, high)), float(np.clip(most, low, high))
