"""The weights of linear layers, `[out, in]`, in float or as the integers that a quantizer wrote."""

from dataclasses import dataclass

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._graph import Graph, Node
from ingot.models.transformer.refusal import NotRecognized

_UNSIGNED_ZERO = 128


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight.

    Attributes:
        values: `[out, in]`, float32, or int8 with a scale.
        scale: `[out, groups]` float32, groups dividing the inputs evenly; None for float.
    """

    values: Array
    scale: Array | None = None

    def rows(self, which: Array) -> "Matrix":
        """Return some of the outputs, in this order."""
        scale = None if self.scale is None else self.scale[which]
        return Matrix(self.values[which], scale)

    def floats(self) -> Array:
        """Return the values in float64."""
        values: Array = self.values.astype(np.float64)
        if self.scale is None:
            return values
        width = values.shape[1] // self.scale.shape[1]
        return values * np.repeat(self.scale.astype(np.float64), width, axis=1)

    def equals(self, other: "Matrix") -> bool:
        """Whether both hold the same numbers in the same form."""
        if self.scale is None or other.scale is None:
            scales = self.scale is None and other.scale is None
        else:
            scales = np.array_equal(self.scale, other.scale)
        return scales and np.array_equal(self.values, other.values)

    def named(self, name: str) -> dict[str, Array]:
        """Return the tensors `NAME.weight` and, of integers, `NAME.weight_scale`."""
        found = {f"{name}.weight": self.values}
        return found if self.scale is None else found | {f"{name}.weight_scale": self.scale}


def read_matrix(graph: Graph, name: str, *, turned: bool) -> Matrix:
    """Return the weight that a product reads.

    Args:
        graph: The graph.
        name: A constant of rank 2.
        turned: Whether it is stored `(in, out)`.
    """
    node = graph.maker.get(name)
    if node is not None and node.op == "Transpose":
        return read_matrix(graph, node.inputs[0], turned=not turned)
    if node is not None and node.op == "DequantizeLinear":
        found = _integers(graph, node, turned=turned)
        if found is not None:
            return found
    value = graph.constant(name)
    return Matrix(np.ascontiguousarray(value.T if turned else value, np.float32))


def _integers(graph: Graph, node: Node, *, turned: bool) -> Matrix | None:
    """Read symmetric integers; None if only their float values say what they are."""
    stored = graph.constant(node.inputs[0])
    values = stored.astype(np.int32) if stored.dtype.itemsize == 1 else None
    zero = _zero(graph, node)
    if values is None or zero is None:
        return None
    values = values - zero
    if values.min(initial=0) < -128 or values.max(initial=0) > 127:
        return None
    scale = graph.constant(node.inputs[1]).astype(np.float32)
    if turned:
        values = values.T
    grouped = _row_scales(scale, node, values.shape, turned=turned)
    if grouped is None:
        return None
    return Matrix(np.ascontiguousarray(values, np.int8), np.ascontiguousarray(grouped))


def _zero(graph: Graph, node: Node) -> int | None:
    """Return the one zero point of all integers, or None if they differ."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return 0
    points = graph.constant(node.inputs[2]).astype(np.int32)
    return int(points.flat[0]) if (points == points.flat[0]).all() else None


def _row_scales(scale: Array, node: Node, shape: tuple[int, ...], *, turned: bool) -> Array | None:
    """Bring scales into the form `[out, groups]`; None for another division."""
    rows, inputs = shape
    if scale.size == 1:
        return np.full((rows, 1), scale.reshape(-1)[0], np.float32)
    axis, out_axis = int(node.attribute("axis", 1)) % 2, 1 if turned else 0
    if node.attribute("block_size", 0):
        grouped = scale.T if turned else scale
        fits = axis != out_axis and inputs % grouped.shape[1] == 0 and len(grouped) == rows
        return grouped if fits else None
    if scale.ndim == 1 and axis == out_axis and scale.size == rows:
        return scale.reshape(rows, 1)
    return None


def read_integer_product(graph: Graph, product: Node, scale: Array) -> Matrix:
    """Return the weight of a MatMulInteger whose result is multiplied by `scale`.

    Integers around another point than zero are widened to float.
    """
    values = graph.constant(product.inputs[1]).astype(np.int32)
    if len(product.inputs) > 3 and product.inputs[3]:
        values = values - graph.constant(product.inputs[3]).astype(np.int32).reshape(1, -1)
    values = values.T
    spread = np.broadcast_to(scale.reshape(-1, 1).astype(np.float32), (len(values), 1))
    if values.min(initial=0) < -128 or values.max(initial=0) > 127:
        return Matrix((values * spread).astype(np.float32))
    return Matrix(np.ascontiguousarray(values, np.int8), np.ascontiguousarray(spread))


def read_packed(graph: Graph, node: Node) -> Matrix:
    """Return the weight of a MatMulNBits: 4 or 8 bits, blocks of inputs with a scale each.

    Raises:
        NotRecognized: Its zero points are not the middle, or it reorders its inputs.
    """
    rows, inputs = int(node.attribute("N")), int(node.attribute("K"))
    bits, block = int(node.attribute("bits", 4)), int(node.attribute("block_size"))
    plain = all(not name for name in node.inputs[3:5])
    if bits not in (4, 8) or inputs % block or not plain:
        raise NotRecognized(f"the integers of {node.label} are not symmetric in even groups")
    packed = graph.constant(node.inputs[1]).reshape(rows, -1)
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1)
    values = packed[:, :inputs].astype(np.int32) - (1 << (bits - 1))
    scale = graph.constant(node.inputs[2]).reshape(rows, inputs // block).astype(np.float32)
    return Matrix(np.ascontiguousarray(values, np.int8), np.ascontiguousarray(scale))
