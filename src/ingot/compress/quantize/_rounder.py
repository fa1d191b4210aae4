"""Round the weights of a graph's layers by one rule, and say what the bias has to make up for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize.moments import Moments, layer_moments, rows_to_weight, weight_rows
from ingot.compress.quantize.qparams import QParams, weight_grid
from ingot.compress.quantize.rounding import Rounding, round_rows
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Array, Split


@dataclass(frozen=True, slots=True)
class Rounder:
    """Rounds layers whose input moments are known by `how`, all others to the nearest.

    Attributes:
        how: The rule.
        bias_correction: Whether biases take up the mean error of the output.
        moments: By layer.
    """

    how: Rounding = "nearest"
    bias_correction: bool = False
    moments: Mapping[str, Moments] = field(default_factory=dict)

    def grid(
        self, node: onnx.NodeProto, weight: Array, axis: int | None, floor: Array | float
    ) -> QParams:
        """Return the grid of a layer's weights; see `weight_grid`."""
        del node
        return weight_grid(weight, axis, floor=floor)

    def integers(self, graph: Graph, node: onnx.NodeProto, weight: Array, grid: QParams) -> Array:
        """Return the integers of a layer's weights on this grid."""
        known = self.moments.get(node.name)
        if self.how == "nearest" or known is None or not _is_flat(node, weight):
            return grid.quantize(weight)
        rows = weight_rows(graph, node, weight)
        scale = np.broadcast_to(grid.scale.reshape(-1, 1), (rows.shape[0] * rows.shape[1], 1))
        scale = scale.reshape(rows.shape[0], rows.shape[1], 1)
        found = [
            round_rows(w, s, h, grid.limits, self.how)
            for w, s, h in zip(rows, scale, known.hessian, strict=True)
        ]
        return rows_to_weight(node, np.stack(found), weight.shape).astype(grid.dtype)

    def shift(
        self, graph: Graph, node: onnx.NodeProto, weight: Array, restored: Array
    ) -> Array | None:
        """Return E[(W - W^) x] per output channel, or None if biases are left as they are.

        References:
            Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
            2019. arXiv:1906.04721
        """
        known = self.moments.get(node.name)
        if not self.bias_correction or known is None or not _is_flat(node, weight):
            return None
        gap = weight_rows(graph, node, weight.astype(np.float64) - restored)
        shift: Array = np.einsum("goi,gi->go", gap, known.mean).reshape(-1)
        return shift


@dataclass(frozen=True, slots=True)
class Fitted:
    """A layer whose integers are found already.

    Attributes:
        integers: In the shape of the weights.
        scale: One per output channel, `(channels,)`.
        shift: What the bias has to take up, `(channels,)`, or None.
    """

    integers: Array
    scale: Array
    shift: Array | None = None


@dataclass(frozen=True, slots=True)
class FittedRounder(Rounder):
    """Hands out integers that were found elsewhere; layers without any are rounded to the nearest.

    Attributes:
        layers: By name.
    """

    layers: Mapping[str, Fitted] = field(default_factory=dict)

    def grid(
        self, node: onnx.NodeProto, weight: Array, axis: int | None, floor: Array | float
    ) -> QParams:
        """Return the fitted grid, coarser where a bias would not fit into 32 bits."""
        known = self.layers.get(node.name)
        if known is None or axis is None:
            return weight_grid(weight, axis, floor=floor)
        scale = np.maximum(known.scale, floor).astype(np.float32)
        return QParams(scale, np.zeros(scale.shape, np.int8), "int8", axis, narrow=True)

    def integers(self, graph: Graph, node: onnx.NodeProto, weight: Array, grid: QParams) -> Array:
        """Return the fitted integers."""
        known = self.layers.get(node.name)
        if known is None or grid.axis is None:
            return grid.quantize(weight)
        shape = [1] * weight.ndim
        shape[grid.axis] = -1
        return grid.quantize(known.integers * known.scale.reshape(shape))

    def shift(
        self, graph: Graph, node: onnx.NodeProto, weight: Array, restored: Array
    ) -> Array | None:
        """Return what was found with the integers."""
        known = self.layers.get(node.name)
        return None if known is None else known.shift


def make_rounder(
    graph: Graph,
    layers: Collection[str],
    split: Split | None,
    *,
    how: Rounding,
    bias_correction: bool = False,
    progress: Progress = SILENT,
) -> Rounder:
    """Return a rounder; calibration rows are run only if the rule or the correction needs them."""
    if split is None or (how == "nearest" and not bias_correction):
        return Rounder()
    moments = layer_moments(graph, layers, split, progress=progress)
    return Rounder(how, bias_correction, moments)


def _is_flat(node: onnx.NodeProto, weight: Array) -> bool:
    return node.op_type == "Conv" or weight.ndim == 2
