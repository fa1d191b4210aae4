"""The value path of attention: from the projection that makes values to the one that reads them.

Attention mixes rows of V, never its columns, so columns can be rotated before and back after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from ingot.compress.quantize._graph import Graph, known_dims
from ingot.compress.quantize.placement import linear_layers
from ingot.data.data import Array

# These move values and change none.
MOVING = frozenset(
    ("Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)

Step = tuple[onnx.NodeProto, str]  # a node, and which of its outputs goes on


@dataclass(frozen=True, slots=True, eq=False)
class ValuePath:
    """One attention layer's values.

    Attributes:
        value: Name of the node that makes them, alone or with queries and keys.
        bias: Node and input position of the constant that is added to its result, if any.
        output: Name of the node that reads what attention made of them.
        columns: Columns of the first node's weights by head, `(heads, size)`.
        rows: Rows of the second node's weights that these columns meet, same shape.
    """

    value: str
    bias: tuple[str, int] | None
    output: str
    columns: Array
    rows: Array


class _Left(Exception):
    """Why a path cannot be rotated: a way out of the walk, never seen outside."""


def find_value_paths(graph: Graph) -> tuple[list[ValuePath], dict[str, str]]:
    """Return all value paths, and why others that look like one are none.

    Args:
        graph: A prepared graph.

    Returns:
        Paths, and reasons by the name of the layer that reads the product.
    """
    layers, dims = linear_layers(graph), known_dims(graph.proto)
    paths, refused = list[ValuePath](), dict[str, str]()
    for name in layers:
        node = graph.by_name[name]
        after, tensor = _back(graph, node.input[0])
        product = graph.maker.get(tensor)
        if product is None or product.op_type != "MatMul" or product.name in layers:
            continue
        try:
            paths.append(_trace(graph, dims, product, (after, node)))
        except _Left as left:
            refused[name] = str(left)
    return paths, refused


def _back(graph: Graph, tensor: str) -> tuple[list[Step], str]:
    """Return the moving steps that lead to a tensor, in order, and where they begin."""
    chain: list[Step] = []
    node = graph.maker.get(tensor)
    while node is not None and node.op_type in MOVING and node.input[0] not in graph.weights:
        chain.insert(0, (node, tensor))
        tensor = node.input[0]
        node = graph.maker.get(tensor)
    return chain, tensor


def _trace(
    graph: Graph,
    dims: Mapping[str, list[int | None]],
    product: onnx.NodeProto,
    end: tuple[list[Step], onnx.NodeProto],
) -> ValuePath:
    """Send column numbers through the graph; what arrives says which row meets which column.

    Sizes that depend on the input are taken to be 1.
    """
    after, output = end
    before, start = _back(graph, product.input[1])
    source, bias = _projection(graph, start)
    width = graph.weights[source.input[1]].dims[1]
    shape = [size or 1 for size in dims.get(start, [None, None, width])]
    labels = _follow(graph, start, np.broadcast_to(np.arange(width), shape), before)
    columns = np.unique(labels.reshape(-1, labels.shape[-1]), axis=0)
    if columns.shape[1] < 2 or len(np.unique(columns)) < columns.size:
        raise _Left("heads have one column each, or share some")
    arrived = _follow(graph, product.output[0], labels, after)
    arrived = np.unique(arrived.reshape(-1, arrived.shape[-1]), axis=0)
    rows = graph.weights[output.input[1]].dims[0]
    if arrived.shape != (1, rows) or columns.size != rows or len(np.unique(arrived)) < rows:
        raise _Left("the heads do not end side by side")
    place = np.full(width, -1, np.int64)
    place[arrived[0]] = np.arange(rows)
    if (place[columns] < 0).any():
        raise _Left("the heads do not end side by side")
    return ValuePath(source.name, bias, output.name, columns, place[columns])


def _projection(graph: Graph, tensor: str) -> tuple[onnx.NodeProto, tuple[str, int] | None]:
    """Return the linear layer behind a tensor and where its bias is."""
    bias: tuple[str, int] | None = None
    maker, layers = graph.maker.get(tensor), linear_layers(graph)
    if maker is not None and maker.op_type == "Add":
        constant = next((i for i, n in enumerate(maker.input) if graph.is_float_weight(n)), None)
        if constant is None:
            raise _Left("values are no projection")
        bias = (maker.name, constant)
        tensor = maker.input[1 - constant]
        if len(graph.readers[tensor]) != 1 or tensor in graph.outputs:
            raise _Left(f"{tensor!r} has other readers")
        maker = graph.maker.get(tensor)
    if maker is None or maker.name not in layers or maker.op_type == "Conv":
        raise _Left("values are no projection")
    if maker.op_type == "Gemm" and len(maker.input) > 2 and maker.input[2]:
        if bias is not None:
            raise _Left("the projection has two biases")
        bias = (maker.name, 2)
    width = graph.weights[maker.input[1]].dims[-1]
    if bias is not None:
        name = graph.by_name[bias[0]].input[bias[1]]
        if not graph.is_float_weight(name) or list(graph.weights[name].dims) != [width]:
            raise _Left("its bias is not one constant per column")
    return maker, bias


def _follow(graph: Graph, tensor: str, labels: Array, steps: list[Step]) -> Array:
    """Return the labels after these steps; nobody else may read what arrives."""
    for node, output in steps:
        moved = dict(zip(node.output, _move(graph, node, labels), strict=True))
        mine = moved.pop(output)
        taken = list(moved.values())
        for other, _ in graph.readers[tensor]:
            if other.name != node.name and other.op_type != "Shape":
                taken += _move(graph, other, labels)
        if tensor in graph.outputs or any(np.isin(mine, part).any() for part in taken):
            raise _Left(f"{tensor!r} has other readers")
        labels, tensor = mine, output
    if len(graph.readers[tensor]) != 1 or tensor in graph.outputs:
        raise _Left(f"{tensor!r} has other readers")
    return labels


def _move(graph: Graph, node: onnx.NodeProto, labels: Array) -> list[Array]:
    """Return what a moving node makes of the labels."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type not in MOVING:
        raise _Left(f"{node.op_type} {node.name!r} reads it")
    feeds: dict[str, Array] = {node.input[0]: labels}
    for name in node.input[1:]:
        value = _smallest_shape(graph, name) if node.op_type == "Reshape" else graph.value(name)
        if name and value is None:
            raise _Left(f"{node.op_type} {node.name!r} depends on its input")
        if name and value is not None:
            feeds[name] = value
    inputs = [helper.make_empty_tensor_value_info(name) for name in feeds]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    model = helper.make_model(
        helper.make_graph([node], "move", inputs, outputs), opset_imports=graph.proto.opset_import
    )
    try:
        moved = ReferenceEvaluator(model).run(None, feeds)
    except (ValueError, IndexError, RuntimeError) as error:
        raise _Left(f"{node.op_type} {node.name!r} moves more than one token") from error
    return [np.asarray(part) for part in moved]


def _smallest_shape(graph: Graph, name: str) -> Array | None:
    """Return the shape that a Reshape makes where sizes that depend on the input are 1."""
    value = graph.value(name)
    if value is not None:
        return value
    maker = graph.maker.get(name)
    if maker is None or maker.op_type != "Concat":
        return None
    parts = [graph.value(part) for part in maker.input]
    return np.concatenate([np.ones(1, np.int64) if p is None else p.ravel() for p in parts])
