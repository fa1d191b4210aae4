"""An ONNX graph without its decoration: what is constant, what is a feature, who reads what."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ingot.data.data import Array
from ingot.models.external import ExternalData, is_external
from ingot.models.transformer._fused import written_out
from ingot.models.transformer._operators import Operators
from ingot.models.transformer.refusal import NotRecognized

# A tensor's shape is no feature, even if the tensor is one.
_SIZES = frozenset({"Shape", "Size"})
_TABLES = frozenset({"Gather", "GatherElements"})
_COPIES = frozenset({"Identity", "Dropout"})
_SAME_TYPE = frozenset(
    ("Add", "Div", "Erf", "Gather", "Gemm", "LayerNormalization", "MatMul", "Mul", "Pow", "Reshape")
) | frozenset(("Sigmoid", "Softmax", "Sqrt", "Sub", "Tanh", "Transpose"))


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A node with its inputs followed through copies.

    Attributes:
        place: Position in topological order.
        op: Operator; operators of other domains carry theirs: `com.microsoft::MatMulNBits`.
        inputs: Names of tensors; empty for those left out.
        outputs: Names of tensors.
        proto: The node itself.
    """

    place: int
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: onnx.NodeProto

    @property
    def label(self) -> str:
        """The operator, and the node's name to find it by."""
        return f"{self.op} (node {self.proto.name or self.outputs[0]!r})"

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute."""
        found = next((a for a in self.proto.attribute if a.name == name), None)
        return default if found is None else helper.get_attribute_value(found)


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the graph: its name, sizes (None where they vary) and ONNX type."""

    name: str
    dims: tuple[int | None, ...]
    kind: int


class Graph:
    """The nodes that the outputs depend on, indexed; copies and Q/DQ pairs are followed through.

    Attributes:
        nodes: In topological order.
        maker: Tensor name -> the node that makes it.
        readers: Tensor name -> the nodes that read it.
        inputs: Inputs by name.
        outputs: Names of the tensors that leave the graph, in order.
        names: What the outputs are called.
        rounded: Whether quantize/dequantize pairs of activations were left out.
    """

    def __init__(self, proto: onnx.ModelProto, files: ExternalData | None = None) -> None:
        self._files = files
        self._weights = {w.name: w for w in proto.graph.initializer}
        self._values: dict[str, Array] = {}
        self.operators = Operators(proto.opset_import)
        self.inputs = {v.name: _input(v) for v in proto.graph.input if v.name not in self._weights}
        self.rounded = False
        nodes = written_out(proto.graph.node)
        made = {o: n for n in nodes for o in n.output if o}
        self._alias: dict[str, str] = {}
        self._types = {w.name: w.data_type for w in proto.graph.initializer}
        kept = [n for n in nodes if not self._is_copy(n, made)]
        self.names = tuple(o.name for o in proto.graph.output)
        self.outputs = tuple(self._resolve(name) for name in self.names)
        self.nodes = self._live(kept)
        self.maker = {o: n for n in self.nodes for o in n.outputs if o}
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)
        self._spread()

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on no input."""
        return name in self._constant

    def is_feature(self, name: str) -> bool:
        """Whether a tensor is computed from rows of tables that an input picks."""
        return name in self._features

    def constant(self, name: str) -> Array:
        """Return the value of a constant tensor."""
        if name not in self._values:
            if name in self._weights:
                return self._stored(self._weights[name])
            node = self.maker[name]
            inputs = [self.constant(i) if i else None for i in node.inputs]
            self._values |= zip(
                [o for o in node.outputs if o],
                self.operators.run(node.proto, inputs),
                strict=False,
            )
        return self._values[name]

    def _stored(self, weight: onnx.TensorProto) -> Array:
        if self._files is not None and is_external(weight):
            return self._files.read(weight)
        return np.asarray(numpy_helper.to_array(weight))

    def dims(self, name: str) -> tuple[int, ...]:
        """Return the sizes of a constant tensor; a stored one is not read for it."""
        if name in self._weights:
            return tuple(self._weights[name].dims)
        node = self.maker[name]
        if node.op == "DequantizeLinear":
            return self.dims(node.inputs[0])
        if node.op == "Transpose" and len(self.dims(node.inputs[0])) == 2:
            return self.dims(node.inputs[0])[::-1]
        return tuple(self.constant(name).shape)

    def only_reader(self, name: str, *ops: str) -> Node | None:
        """Return the node that alone reads a tensor, if it is one of these operators."""
        found = [n for n in self.readers.get(name, ()) if n.op not in _SIZES]
        if len(found) != 1 or found[0].op not in ops or name in self.outputs:
            return None
        return found[0]

    def ancestors(self, name: str, stop: Iterable[str] = ()) -> list[Node]:
        """Return the nodes that a tensor's values come from, back to `stop`, in order."""
        seen: dict[int, Node] = {}
        waiting, barrier = [name], set(stop)
        while waiting:
            node = self.maker.get(waiting.pop())
            if node is None or node.place in seen:
                continue
            seen[node.place] = node
            if node.op not in _SIZES:
                waiting += [i for i in node.inputs if i and i not in barrier]
        return [seen[place] for place in sorted(seen)]

    def _is_copy(self, node: onnx.NodeProto, made: dict[str, onnx.NodeProto]) -> bool:
        if node.op_type in _COPIES and not (len(node.input) > 2 and node.input[2]):
            self._alias[node.output[0]] = node.input[0]
            return True
        if node.op_type == "Cast" and self._types.get(self._resolve(node.input[0])) == _to(node):
            self._alias[node.output[0]] = node.input[0]
            return True
        self._note_type(node)
        source = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is None or source.op_type != "QuantizeLinear" or source.input[0] in self._weights:
            return False
        self._alias[node.output[0]] = source.input[0]
        self.rounded = True
        return True

    def _note_type(self, node: onnx.NodeProto) -> None:
        """Remember types as far as casts that change nothing need them."""
        if node.op_type == "Cast":
            self._types[node.output[0]] = _to(node)
        elif node.op_type in _SAME_TYPE and not node.domain:
            known = self._types.get(self._resolve(node.input[0]))
            if known is not None:
                self._types[node.output[0]] = known

    def _resolve(self, name: str) -> str:
        while name in self._alias:
            name = self._alias[name]
        return name

    def _live(self, nodes: list[onnx.NodeProto]) -> list[Node]:
        needed, kept = set(self.outputs), []
        for node in reversed(nodes):
            if needed.isdisjoint(node.output):
                continue
            inputs = tuple(self._resolve(name) for name in node.input)
            needed.update(inputs)
            kept.append((node, inputs))
        return [
            Node(place, _operator(node), inputs, tuple(node.output), node)
            for place, (node, inputs) in enumerate(reversed(kept))
        ]

    def _spread(self) -> None:
        self._constant = set(self._weights)
        self._reads: dict[str, frozenset[str]] = {n: frozenset({n}) for n in self.inputs}
        self._features: set[str] = set()
        for node in self.nodes:
            names = [n for n in node.inputs if n]
            if all(n in self._constant for n in names) and not node.op.startswith("Random"):
                self._constant.update(node.outputs)
            if node.op in _SIZES:
                continue
            reads = frozenset().union(*(self._reads.get(n, frozenset()) for n in names))
            self._reads |= dict.fromkeys(node.outputs, reads)
            if not self._features.isdisjoint(names) or self._picks_rows(node):
                self._features.update(node.outputs)

    def _picks_rows(self, node: Node) -> bool:
        if node.op not in _TABLES or not self.is_constant(node.inputs[0]):
            return False
        return bool(self._reads.get(node.inputs[1]))

    def reads(self, name: str) -> frozenset[str]:
        """Return the inputs whose values, not only sizes, a tensor depends on."""
        return self._reads.get(name, frozenset())


def _to(node: onnx.NodeProto) -> int:
    return next(int(a.i) for a in node.attribute if a.name == "to")


def _operator(node: onnx.NodeProto) -> str:
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        label = f"{node.op_type} (node {node.name or node.output[0]!r})"
        raise NotRecognized(f"a graph inside the graph, of {label}, decides what is computed")
    op: str = node.op_type
    return op if node.domain in ("", "ai.onnx") else f"{node.domain}::{op}"


def _input(value: onnx.ValueInfoProto) -> Input:
    kind = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Input(value.name, dims, kind.elem_type)
