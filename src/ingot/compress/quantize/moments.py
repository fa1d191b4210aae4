"""What the inputs of layers look like: first and second moments over calibration data.

The squared error of a layer's output depends on its inputs only through `H = E[x x^T]`, so that
rounding, channel scales and bias corrections can all be chosen without keeping any activations.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ingot.compress.quantize._graph import Graph, attributes
from ingot.compress.quantize.calibrate import activations
from ingot.core.errors import RecipeError
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Array, Split

MOST_ROWS = 8192  # patches of one batch that are used; a convolution has one per output pixel
WIDEST = 8192  # inputs per output of a layer: H is a square of this size


@dataclass(slots=True, eq=False)
class Moments:
    """Moments of one layer's inputs, each group of a grouped convolution on its own.

    Attributes:
        second: Sum of x x^T, `(groups, inputs, inputs)`.
        first: Sum of x, `(groups, inputs)`.
        count: Rows that were summed.
    """

    second: Array
    first: Array
    count: int = 0

    @property
    def hessian(self) -> Array:
        """E[x x^T], `(groups, inputs, inputs)`, float64."""
        found: Array = self.second.astype(np.float64) / max(self.count, 1)
        return found

    @property
    def mean(self) -> Array:
        """E[x], `(groups, inputs)`, float64."""
        found: Array = self.first.astype(np.float64) / max(self.count, 1)
        return found


def layer_moments(
    graph: Graph, layers: Collection[str], split: Split, *, progress: Progress = SILENT
) -> dict[str, Moments]:
    """Return the moments of the inputs of each layer; layers that read alike share theirs.

    Args:
        graph: A prepared graph.
        layers: Names of Conv, Gemm and MatMul nodes with constant weights. Those with more than
            8,192 inputs per output are left out.
        split: Rows to run.
        progress: Where batches are reported.

    Raises:
        RecipeError: An input is not finite; it is named.
    """
    tensors = sorted({graph.by_name[name].input[0] for name in measurable(graph, layers)})
    return sum_moments(graph, layers, activations(graph.proto, split, tensors, progress))


def measurable(graph: Graph, layers: Collection[str]) -> list[str]:
    """Return the layers that are narrow enough for their moments to be kept."""
    return [name for name in layers if _inputs(graph, graph.by_name[name]) <= WIDEST]


def sum_moments(
    graph: Graph, layers: Collection[str], batches: Iterable[Mapping[str, Array]]
) -> dict[str, Moments]:
    """Return the moments of the inputs of each layer over batches of them.

    Args:
        graph: A prepared graph.
        layers: Names of layers, as in `layer_moments`.
        batches: Tensor name -> values, for every tensor that one of the layers reads.

    Raises:
        RecipeError: An input is not finite; it is named.
    """
    nodes = {name: graph.by_name[name] for name in measurable(graph, layers)}
    keys = {name: _key(graph, node) for name, node in nodes.items()}
    found: dict[tuple[str, str], Moments] = {}
    makers = {keys[name]: node for name, node in nodes.items()}
    rng = np.random.default_rng(0)
    for values in batches:
        for key, node in makers.items():
            _add(found, key, _rows(graph, node, values[node.input[0]], rng))
    return {name: found[key] for name, key in keys.items()}


def weight_rows(graph: Graph, node: onnx.NodeProto, weight: Array) -> Array:
    """Return weights as `(groups, outputs per group, inputs)`: rows that multiply `Moments`."""
    if node.op_type != "Conv":
        return np.ascontiguousarray(weight.T)[None]
    groups = int(attributes(node).get("group", 1))  # type: ignore[call-overload] # an int attribute
    return weight.reshape(groups, len(weight) // groups, -1)


def rows_to_weight(node: onnx.NodeProto, rows: Array, shape: Sequence[int]) -> Array:
    """Undo `weight_rows`."""
    return rows.reshape(shape) if node.op_type == "Conv" else np.ascontiguousarray(rows[0].T)


def _inputs(graph: Graph, node: onnx.NodeProto) -> int:
    shape = list(graph.weights[node.input[1]].dims)
    return int(np.prod(shape[1:])) if node.op_type == "Conv" else int(shape[0])


def _key(graph: Graph, node: onnx.NodeProto) -> tuple[str, str]:
    if node.op_type != "Conv":
        return node.input[0], "linear"
    options = sorted(a.SerializeToString().hex() for a in node.attribute)
    return node.input[0], f"conv {list(graph.weights[node.input[1]].dims)[1:]} {options}"


def _rows(graph: Graph, node: onnx.NodeProto, x: Array, rng: np.random.Generator) -> Array:
    """Return what each output is a product of: `(groups, rows, inputs)`."""
    if not np.isfinite(x).all():
        raise RecipeError(
            f"Tensor {node.input[0]!r} must stay finite on the calibration data; got NaN or "
            "infinity. Look for bad rows in the data or layers that overflow."
        )
    if node.op_type != "Conv":
        return x.reshape(1, -1, x.shape[-1])
    options = attributes(node)
    kernel = list(graph.weights[node.input[1]].dims)[2:]
    patches = _patches(x, kernel, options)
    groups = int(options.get("group", 1))  # type: ignore[call-overload] # an int attribute
    if patches.shape[0] > MOST_ROWS:
        patches = patches[rng.choice(len(patches), MOST_ROWS, replace=False)]
    return np.ascontiguousarray(patches.reshape(len(patches), groups, -1).transpose(1, 0, 2))


def _patches(x: Array, kernel: Sequence[int], options: Mapping[str, object]) -> Array:
    """Return `(rows, channels * kernel)`, one row per output position."""
    rank = len(kernel)
    strides = list(options.get("strides", [1] * rank))  # type: ignore[call-overload] # ints
    steps = list(options.get("dilations", [1] * rank))  # type: ignore[call-overload] # ints
    pads = list(options.get("pads", [0] * 2 * rank))  # type: ignore[call-overload] # ints
    if options.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [
            max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            for n, k, s, d in zip(x.shape[2:], kernel, strides, steps, strict=True)
        ]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    window = [(k - 1) * d + 1 for k, d in zip(kernel, steps, strict=True)]
    axes = tuple(range(2, 2 + rank))
    views = np.lib.stride_tricks.sliding_window_view(padded, window, axes)
    picks = (slice(None),) * 2 + tuple(slice(None, None, s) for s in strides)
    views = views[picks + tuple(slice(None, None, d) for d in steps)]
    return np.moveaxis(views, 1, 1 + rank).reshape(-1, x.shape[1] * int(np.prod(kernel)))


def _add(found: dict[tuple[str, str], Moments], key: tuple[str, str], rows: Array) -> None:
    groups, _, width = rows.shape
    if key not in found:
        found[key] = Moments(
            np.zeros((groups, width, width), np.float32), np.zeros((groups, width))
        )
    one = found[key]
    rows = rows.astype(np.float32, copy=False)
    one.second += np.matmul(rows.transpose(0, 2, 1), rows)
    one.first += rows.sum(axis=1, dtype=np.float64)
    one.count += rows.shape[1]
