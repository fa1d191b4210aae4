"""Pairs of layers between which a positive factor per channel can be moved without any change."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from ingot.compress.quantize._graph import Graph, attributes
from ingot.compress.quantize.placement import linear_layers
from ingot.data.data import Array

# f(s x) = s f(x) for every s > 0, value by value.
HOMOGENEOUS = frozenset({"Abs", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu"})
POOLING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers with nothing in between that tells one positive scale from another.

    Attributes:
        first: Name of the node that makes the channels.
        second: Name of the only node that reads them.
        channels: How many there are.
        biases: Constants added to the result of the first: node name, input position, and the
            shape to bring the constant to, channels first.
    """

    first: str
    second: str
    channels: int
    biases: tuple[tuple[str, int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the channels of a tensor are: axis 1 before `spatial` axes, or last if there are none.

    `single`: every spatial axis has length 1.
    """

    channels: int
    spatial: int
    single: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one value per channel that broadcasts to the tensor."""
        return (self.channels, *[1] * self.spatial)


def find_pairs(graph: Graph) -> tuple[list[Pair], dict[str, str]]:
    """Return all pairs, and for every other layer why it begins none.

    Args:
        graph: A prepared graph: batch norms are folded, Gemm is `x W + b`.
    """
    layers = linear_layers(graph)
    pairs, refused = list[Pair](), dict[str, str]()
    for name, (_, axis) in layers.items():
        node = graph.by_name[name]
        dims = list(graph.weights[node.input[1]].dims)
        layout = _Layout(dims[axis], len(dims) - 2 if node.op_type == "Conv" else 0)
        found = _walk(graph, node, layout, frozenset(layers))
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            refused[name] = found
    return pairs, refused


def _walk(
    graph: Graph, first: onnx.NodeProto, layout: _Layout, layers: frozenset[str]
) -> Pair | str:
    """Follow the result of a layer to the next one; return the pair or why there is none."""
    if first.op_type != "Conv" and len(graph.weights[first.input[1]].dims) != 2:
        return "its weights are not a matrix"
    biases: list[tuple[str, int, tuple[int, ...]]] = []
    if len(first.input) > 2 and first.input[2]:
        if graph.is_float_weight(first.input[2]) is False or not _fits(graph, first, layout):
            return "its bias is not one constant per channel"
        biases.append((first.name, 2, (layout.channels,)))
    tensor = first.output[0]
    while True:
        readers = graph.readers.get(tensor, [])
        if tensor in graph.outputs:
            return "its result is an output"
        if len(readers) != 1:
            return f"its result has {len(readers)} readers"
        node, position = readers[0]
        if node.name in layers and position == 0:
            pair = Pair(first.name, node.name, layout.channels, tuple(biases))
            return pair if _accepts(graph, node, layout) else f"{node.name!r} has other channels"
        if node.op_type == "Add" and _is_per_channel(graph, node.input[1 - position], layout):
            biases.append((node.name, 1 - position, layout.shape))
            after: _Layout | None = layout
        else:
            after = _after(graph, node, position, layout)
        if after is None:
            return f"{node.op_type} {node.name!r} is in between"
        layout, tensor = after, node.output[0]


def _fits(graph: Graph, node: onnx.NodeProto, layout: _Layout) -> bool:
    value = graph.value(node.input[2])
    unscaled = attributes(node).get("beta", 1.0) == 1.0
    return value is not None and value.shape == (layout.channels,) and unscaled


def _accepts(graph: Graph, node: onnx.NodeProto, layout: _Layout) -> bool:
    """Whether this layer's input channels are those of the layout."""
    dims = list(graph.weights[node.input[1]].dims)
    if node.op_type == "Conv":
        groups = int(attributes(node).get("group", 1))  # type: ignore[call-overload] # an int attribute
        return layout.spatial == len(dims) - 2 and dims[1] * groups == layout.channels
    flat = layout.spatial == 0 and len(dims) == 2
    return bool(flat and dims[0] % layout.channels == 0)


def _is_per_channel(graph: Graph, name: str, layout: _Layout) -> bool:
    """Whether this is a constant with one value, or one per channel."""
    if not graph.is_float_weight(name):
        return False
    dims, rank = list(graph.weights[name].dims), len(layout.shape)
    if any(d != 1 for d in dims[:-rank]):
        return False
    padded = (*[1] * (rank - len(dims)), *dims[-rank:])
    return all(d in (1, s) for d, s in zip(padded, layout.shape, strict=True))


def _after(graph: Graph, node: onnx.NodeProto, position: int, layout: _Layout) -> _Layout | None:
    """Return where the channels are after this node, or None if a factor cannot pass it."""
    kind, options = node.op_type, attributes(node)
    if any(name and name in graph.readers for name in node.output[1:]):
        return None
    if kind in HOMOGENEOUS:
        slope_fits = kind != "PRelu" or _is_per_channel(graph, node.input[1], layout)
        return layout if position == 0 and slope_fits else None
    if kind in ("Mul", "Div") and (kind == "Mul" or position == 0):
        return layout if _is_per_channel(graph, node.input[1 - position], layout) else None
    if not layout.spatial or position != 0:
        return None
    if kind in POOLING:
        return replace(layout, single=layout.single or kind.startswith("Global"))
    if kind == "ReduceMean":
        return _after_mean(graph, node, options, layout)
    if kind == "Pad":
        return layout if _pads_around_zero(graph, node, options, layout) else None
    if kind in FLATTENING and _flattens(graph, node, options, layout):
        return _Layout(layout.channels, 0)
    return None


def _axes(graph: Graph, node: onnx.NodeProto, options: Mapping[str, object]) -> list[int] | None:
    """Return the axes given as an input or an attribute."""
    if len(node.input) > 1 and node.input[1]:
        value = graph.value(node.input[1])
        return None if value is None else [int(v) for v in value.ravel()]
    axes = options.get("axes")
    return None if axes is None else [int(v) for v in axes]  # type: ignore[attr-defined] # ints


def _covers_space(axes: list[int] | None, layout: _Layout) -> bool:
    rank = layout.spatial + 2
    return axes is not None and {a % rank for a in axes} == set(range(2, rank))


def _after_mean(
    graph: Graph, node: onnx.NodeProto, options: Mapping[str, object], layout: _Layout
) -> _Layout | None:
    if not _covers_space(_axes(graph, node, options), layout):
        return None
    return (
        replace(layout, single=True) if options.get("keepdims", 1) else _Layout(layout.channels, 0)
    )


def _pads_around_zero(
    graph: Graph, node: onnx.NodeProto, options: Mapping[str, object], layout: _Layout
) -> bool:
    """Whether this adds zeros around the picture and no channels."""
    pads, rank = graph.value(node.input[1]), layout.spatial + 2
    fill: Array | None = np.zeros(1)
    if len(node.input) > 2 and node.input[2]:
        fill = graph.value(node.input[2])
    plain = len(node.input) < 4 and options.get("mode", b"constant") == b"constant"
    if pads is None or fill is None or pads.size != 2 * rank or not plain:
        return False
    return not fill.any() and not pads.reshape(2, rank)[:, :2].any()


def _flattens(
    graph: Graph, node: onnx.NodeProto, options: Mapping[str, object], layout: _Layout
) -> bool:
    """Whether this makes (rows, channels * positions) of (rows, channels, positions)."""
    if node.op_type == "Flatten":
        return options.get("axis", 1) == 1
    if node.op_type == "Squeeze":
        return layout.single and _covers_space(_axes(graph, node, options), layout)
    shape = graph.value(node.input[1])
    if shape is None or shape.size != 2 or options.get("allowzero", 0):
        return False
    return bool(shape[0] == 0 or (layout.single and shape[1] == layout.channels))
