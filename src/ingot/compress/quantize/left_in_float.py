"""What a quantized graph still computes in float, node by node, and why."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import onnx
from onnx import TensorProto

from ingot.compress.method import Method
from ingot.compress.quantize._graph import PROTO_LIMIT, Graph
from ingot.compress.quantize.placement import (
    FUSED_ACTIVATIONS,
    JOINING,
    LINEAR,
    OPERATORS,
    SHARING,
    embedding_tables,
)
from ingot.core.digest import Json
from ingot.models.onnx_format import subgraphs

Reason = Literal[
    "no integer kernel",
    "named in skip",
    "left out by operators",
    "embeddings=0",
    "product of two activations",
    "weights are no float32 constants",
    "beside no integer layer",
    "inside a branch or loop",
    "could not be quantized",
]
_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16))
_INTEGER_LAYERS = frozenset(("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"))
_BETWEEN_TYPES = frozenset(("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"))
# These compute nothing: in float they cost what they cost in integers, but for the bytes.
_MOVING = (SHARING - {"MaxPool"}) | {
    "Cast", "Constant", "ConstantOfShape", "Expand", "Gather", "GatherElements", "GatherND",
    "Identity", "Range", "Shape", "Split", "Tile", "Where",
}  # fmt: skip
# How the writers name what turns integers back into floats.
_RESTORING = re.compile(r".*(_restore|_scale|_int4_(shifted|high|above|low|both|centre))")
_LEAST_WEIGHTS = 1024  # values; a smaller constant is no loss that anybody would look for
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class FloatNode:
    """A node, or an embedding table, that a quantized graph keeps in float.

    Attributes:
        name: Name of the node; of the constant if it is a table.
        operator: ONNX operator type.
        reason: Why.
        parameters: Values in the float constants of two and more axes that it reads.
    """

    name: str
    operator: str
    reason: Reason
    parameters: int

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "operator": self.operator,
            "reason": self.reason,
            "parameters": self.parameters,
        }


def left_in_float(proto: onnx.ModelProto, methods: Sequence[Method]) -> tuple[FloatNode, ...]:
    """Return what a quantized graph still computes or stores in float, most weights first.

    Where activations are integers too, that is every node that computes floats. Where only weights
    are, or activations within linear layers (dynamic), it is every layer with weights. What only
    moves values and what engines fuse into the layer before it (a bias, Relu, Clip) is not counted.

    Args:
        proto: The graph after the last method; external weights need not be loaded.
        methods: What made it; `skip`, `operators` and `embeddings` of the last one that has them
            tell choices from what could not be done.

    Returns:
        Nothing if the graph holds no integers at all: then nothing was left, nothing was taken.
    """
    found = _Float(Graph(proto), tuple(methods))
    return found.rows() if found.is_quantized else ()


def show_left(rows: Sequence[FloatNode]) -> str:
    """Return what is left in float in one line: numbers by reason and operator type.

    Examples:
        >>> show_left([FloatNode("a", "Conv", "named in skip", 9)] * 2)
        'named in skip: 2 Conv'
    """
    groups: dict[str, Counter[str]] = {}
    for row in rows:
        groups.setdefault(row.reason, Counter())[row.operator] += 1
    parts = [f"{reason}: {_counted(kinds)}" for reason, kinds in sorted(groups.items())]
    return "; ".join(parts) or "nothing"


def list_left(rows: Sequence[FloatNode]) -> str:
    """Return what is left in float, a line per node; `nothing` where that is so.

    Examples:
        >>> list_left([FloatNode("a", "Conv", "named in skip", 9)])
        'a (Conv): named in skip'
    """
    return "\n".join(f"{row.name} ({row.operator}): {row.reason}" for row in rows) or "nothing"


def _counted(kinds: Counter[str]) -> str:
    shown = [f"{count} {operator}" for operator, count in kinds.most_common(_SHOWN)]
    more = sum(kinds.values()) - sum(count for _, count in kinds.most_common(_SHOWN))
    return ", ".join(shown) + (f" and {more} more" if more else "")


@dataclass(slots=True)
class _Float:
    """One walk over a quantized graph."""

    graph: Graph
    methods: tuple[Method, ...]
    kinds: dict[str, int] = field(default_factory=dict)  # element type by tensor
    integers: set[str] = field(default_factory=set)  # names of nodes that run as integers

    def __post_init__(self) -> None:
        self.kinds = _element_types(self.graph.proto)
        self.integers = {node.name for node in self.graph.nodes if self.is_integer(node)}

    @property
    def is_quantized(self) -> bool:
        used = {node.op_type for node in self.graph.nodes}
        return bool(used & (_BETWEEN_TYPES | _INTEGER_LAYERS)) or any(
            _RESTORING.fullmatch(node.name) for node in self.graph.nodes
        )

    @property
    def has_integer_activations(self) -> bool:
        return any(node.op_type == "QuantizeLinear" for node in self.graph.nodes)

    def rows(self) -> tuple[FloatNode, ...]:
        found = [
            FloatNode(table, "Gather", self.why_table(table), self.size(table))
            for table in embedding_tables(self.graph, _LEAST_WEIGHTS)
            if not self.holds_scales(table)
        ]
        for node in self.graph.nodes:
            size = sum(self.size(name) for name in node.input)
            if self.computes_floats(node) and (
                self.has_integer_activations or _is_layer(node, size)
            ):
                found.append(FloatNode(node.name, node.op_type, self.why(node), size))
        found += self.hidden()
        return tuple(sorted(found, key=lambda row: -row.parameters))

    def holds_scales(self, table: str) -> bool:
        """Whether these are the scales of a table's rows, gathered beside its integers."""
        return all(reader.name.endswith("_scales") for reader, _ in self.graph.readers[table])

    def hidden(self) -> Iterator[FloatNode]:
        """Give the layers of inner graphs, which no quantizer enters."""
        _, *inner = subgraphs(self.graph.proto.graph)
        for part in inner:
            sizes = {w.name: prod(w.dims) for w in part.initializer if len(w.dims) > 1}
            for node in part.node:
                size = sum(sizes.get(name) or self.size(name) for name in node.input)
                if _is_layer(node, size) and node.op_type not in _MOVING:
                    yield FloatNode(node.name, node.op_type, "inside a branch or loop", size)

    def computes_floats(self, node: onnx.NodeProto) -> bool:
        if node.op_type in _MOVING | FUSED_ACTIVATIONS | _BETWEEN_TYPES | _INTEGER_LAYERS:
            return False
        # a type that nobody could infer is a float's: shapes are always known
        is_float = self.kinds.get(node.output[0], TensorProto.FLOAT) in _FLOATS
        return is_float and node.name not in self.integers and not self.is_part(node)

    def is_part(self, node: onnx.NodeProto) -> bool:
        """Whether this belongs to an integer layer: what widens its result, or its bias."""
        if _RESTORING.fullmatch(node.name):
            return True
        makers = [self.graph.maker.get(name) for name in node.input]
        constants = [name in self.graph.weights for name in node.input]
        return (
            node.op_type == "Add"
            and any(constants)
            and any(m is not None and self.makes_layer(m) for m in makers)
        )

    def makes_layer(self, node: onnx.NodeProto) -> bool:
        in_place = node.name in self.integers and node.op_type in LINEAR
        return in_place or node.name.endswith("_restore")

    def is_integer(self, node: onnx.NodeProto) -> bool:
        """Whether engines run this node on integers, or, of weights alone, store them so."""
        whole = self.has_integer_activations
        if node.op_type in _INTEGER_LAYERS:
            return True
        if node.op_type in LINEAR:
            first, second = (self.is_restored(name) for name in node.input[:2])
            return second and (first or not whole)
        if node.op_type in JOINING:
            data = [n for n in node.input if n and n not in self.graph.weights]
            return bool(data) and all(map(self.is_restored, data)) and self.is_requantized(node)
        return False

    def is_restored(self, name: str) -> bool:
        maker = self.graph.maker.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear"

    def is_requantized(self, node: onnx.NodeProto) -> bool:
        readers = [reader for reader, _ in self.graph.readers.get(node.output[0], ())]
        if len(readers) == 1 and readers[0].op_type in FUSED_ACTIVATIONS:
            readers = [r for r, _ in self.graph.readers.get(readers[0].output[0], ())]
        return any(reader.op_type == "QuantizeLinear" for reader in readers)

    def size(self, name: str) -> int:
        weight = self.graph.weights.get(name)
        large = weight is not None and len(weight.dims) > 1 and weight.data_type in _FLOATS
        return prod(weight.dims) if weight is not None and large else 0

    def setting(self, name: str, default: object) -> object:
        """Return a setting of the last method that has it."""
        values = [getattr(m, name) for m in self.methods if hasattr(m, name)]
        return values[-1] if values else default

    def why_table(self, table: str) -> Reason:
        if table in self.skipped:
            return "named in skip"
        return "could not be quantized" if self.setting("embeddings", 8) else "embeddings=0"

    @property
    def skipped(self) -> frozenset[str]:
        return frozenset(name for m in self.methods for name in getattr(m, "skip", ()))

    def why(self, node: onnx.NodeProto) -> Reason:
        operators = self.setting("operators", OPERATORS)
        assert isinstance(operators, tuple)
        if node.name in self.skipped:
            return "named in skip"
        if node.op_type not in (OPERATORS if self.has_integer_activations else LINEAR):
            return "no integer kernel"
        if node.op_type not in operators:
            return "left out by operators"
        if node.op_type in JOINING:
            return "beside no integer layer"
        return self.why_layer(node)

    def why_layer(self, node: onnx.NodeProto) -> Reason:
        if self.graph.is_float_weight(node.input[1]):
            return "could not be quantized"
        is_constant = node.input[1] in self.graph.weights
        if node.op_type == "MatMul" and not is_constant:
            return "product of two activations"
        return "weights are no float32 constants"


def _is_layer(node: onnx.NodeProto, size: int) -> bool:
    return size > 0 and (node.op_type in LINEAR or size >= _LEAST_WEIGHTS)


def _element_types(proto: onnx.ModelProto) -> dict[str, int]:
    graph = proto.graph  # as it is when it is too large to be handed to the checker
    if proto.ByteSize() < PROTO_LIMIT:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    return {info.name: info.type.tensor_type.elem_type for info in infos} | {
        w.name: w.data_type for w in graph.initializer
    }
