"""The pieces that carry weights or mix tokens: norms, linear layers, products, softmaxes.

All else in a transformer moves, scales and adds what these give.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._graph import Graph, Node
from ingot.models.transformer._norms import Norm, find_norm
from ingot.models.transformer._weights import (
    Matrix,
    read_integer_product,
    read_matrix,
    read_packed,
)
from ingot.models.transformer.refusal import NotRecognized

_PACKED = "com.microsoft::MatMulNBits"


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A linear layer: x W^T + b.

    Attributes:
        inputs: The tensor that enters.
        output: The tensor that leaves.
        nodes: What it is made of.
        matrix: W.
        bias: b `[out]`, or None.
    """

    inputs: tuple[str, ...]
    output: str
    nodes: tuple[Node, ...]
    matrix: Matrix
    bias: Array | None

    def shape(self, entering: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of what leaves."""
        return (*entering[:-1], len(self.matrix.values))

    def named(self, name: str, rows: Array | None = None) -> dict[str, Array]:
        """Return its tensors under a name; only some outputs, if given."""
        which = np.arange(len(self.matrix.values)) if rows is None else rows
        found = (self.matrix if rows is None else self.matrix.rows(which)).named(name)
        return found if self.bias is None else found | {f"{name}.bias": self.bias[which]}


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A product of two computed tensors."""

    inputs: tuple[str, ...]
    output: str
    nodes: tuple[Node, ...]

    def shape(self, left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of what leaves."""
        return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Softmax:
    """A softmax over the last axis."""

    inputs: tuple[str, ...]
    output: str
    nodes: tuple[Node, ...]
    axis: int

    def shape(self, entering: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of what leaves."""
        if self.axis not in (-1, len(entering) - 1):
            label = self.nodes[0].label
            raise NotRecognized(f"{label} sums over axis {self.axis}, not over the keys")
        return entering


Piece = Norm | Dense | Product | Softmax


def find_pieces(graph: Graph) -> list[Piece]:
    """Return every piece in the order of the graph.

    Raises:
        NotRecognized: A piece is of a kind that the engine does not have.
    """
    found = list(_pieces(graph))
    norms = {piece.output for piece in found if isinstance(piece, Norm)}
    found = [_with_factor(graph, p, norms) if isinstance(p, Dense) else p for p in found]
    return sorted(found, key=lambda piece: piece.nodes[-1].place)


def _pieces(graph: Graph) -> Iterator[Piece]:
    for node in graph.nodes:
        if not any(graph.is_feature(name) for name in node.outputs):
            continue
        norm = find_norm(graph, node)
        if norm is not None:
            yield norm
        elif node.op in ("MatMul", "Gemm", _PACKED):
            yield _product(graph, node)
        elif node.op == "MatMulInteger":
            yield _integer_dense(graph, node)
        elif node.op == "Softmax":
            yield _softmax(graph, node)


def _product(graph: Graph, node: Node) -> Piece:
    if node.op == _PACKED:
        bias = graph.constant(node.inputs[5]) if len(node.inputs) > 5 and node.inputs[5] else None
        return _with_bias(graph, (node,), read_packed(graph, node), bias)
    if all(graph.is_feature(name) for name in node.inputs[:2]) and node.op == "MatMul":
        return Product(node.inputs, node.outputs[0], (node,))
    weight = node.inputs[1]
    if not graph.is_constant(weight) or len(graph.dims(weight)) != 2:
        raise NotRecognized(f"{node.label} multiplies by something that is no matrix of weights")
    if node.op == "MatMul":
        return _with_bias(graph, (node,), read_matrix(graph, weight, turned=True), None)
    return _gemm(graph, node)


def _gemm(graph: Graph, node: Node) -> Piece:
    matrix = read_matrix(graph, node.inputs[1], turned=not node.attribute("transB", 0))
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    if node.attribute("transA", 0):
        raise NotRecognized(f"{node.label} turns its input round")
    if alpha != 1:
        matrix = Matrix((matrix.floats() * alpha).astype(np.float32))
    if len(node.inputs) < 3 or not node.inputs[2]:
        return _with_bias(graph, (node,), matrix, None)
    if not graph.is_constant(node.inputs[2]):
        raise NotRecognized(f"{node.label} adds something that is no bias")
    bias = np.broadcast_to(graph.constant(node.inputs[2]) * beta, (1, len(matrix.values)))
    return _with_bias(graph, (node,), matrix, bias.reshape(-1))


def _with_bias(graph: Graph, nodes: tuple[Node, ...], matrix: Matrix, bias: Array | None) -> Dense:
    """Take in the Add of a bias after the product."""
    output, source = nodes[-1].outputs[0], nodes[0].inputs[0]
    add = graph.only_reader(output, "Add") if bias is None else None
    for other in () if add is None else add.inputs:
        if add is None or not graph.is_constant(other):
            continue
        dims = graph.dims(other)
        if dims and dims[-1] == int(np.prod(dims)) == len(matrix.values):
            bias, nodes, output = graph.constant(other).reshape(-1), (*nodes, add), add.outputs[0]
    kept = None if bias is None else np.ascontiguousarray(bias, np.float32)
    return Dense((source,), output, nodes, matrix, kept)


def _with_factor(graph: Graph, dense: Dense, norms: set[str]) -> Dense:
    """Take in a constant factor of each input, which smoothing leaves before a layer."""
    node = graph.maker.get(dense.inputs[0])
    if node is None or node.op != "Mul" or node.outputs[0] in norms:
        return dense
    factor = next((n for n in node.inputs if graph.is_constant(n)), None)
    width = dense.matrix.values.shape[1]
    if factor is None or graph.dims(factor) != (width,) or width == 1:
        return dense
    source = next(n for n in node.inputs if n != factor)
    matrix = Matrix((dense.matrix.floats() * graph.constant(factor)).astype(np.float32))
    return Dense((source,), dense.output, (node, *dense.nodes), matrix, dense.bias)


def _integer_dense(graph: Graph, node: Node) -> Piece:
    """DynamicQuantizeLinear, MatMulInteger, Cast, and a Mul by the product of both scales."""
    measure = graph.maker.get(node.inputs[0])
    cast = graph.only_reader(node.outputs[0], "Cast")
    restore = graph.only_reader(cast.outputs[0], "Mul") if cast else None
    misfit = NotRecognized(f"{node.label} does not multiply what was quantized just before it")
    if measure is None or measure.op != "DynamicQuantizeLinear" or cast is None or restore is None:
        raise misfit
    if node.inputs[2:3] != (measure.outputs[2],) or not graph.is_constant(node.inputs[1]):
        raise misfit
    factor = next(n for n in restore.inputs if n != cast.outputs[0])
    scaling = graph.maker.get(factor)
    if scaling is None or scaling.op != "Mul" or measure.outputs[1] not in scaling.inputs:
        raise misfit
    scale = next((n for n in scaling.inputs if graph.is_constant(n)), None)
    if scale is None:
        raise misfit
    matrix = read_integer_product(graph, node, graph.constant(scale))
    made = (measure, node, cast, scaling, restore)
    return _with_bias(graph, made, matrix, None)


def _softmax(graph: Graph, node: Node) -> Piece:
    axis = int(node.attribute("axis", -1 if graph.operators.opset >= 13 else 1))
    return Softmax(node.inputs[:1], node.outputs[0], (node,), axis)
