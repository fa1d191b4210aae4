"""An ONNX graph with the look-ups that rewriting needs: who makes a tensor, who reads it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx
from onnx import helper, numpy_helper, shape_inference

from ingot.data.data import Array
from ingot.models.external import ExternalData, is_external
from ingot.models.onnx_format import subgraphs

PROTO_LIMIT = 2_000_000_000  # bytes that protobuf serializes


@dataclass(slots=True)
class Graph:
    """A model's main graph, indexed. Call `index` after nodes were added, removed or rewired.

    Attributes:
        proto: The model that is edited in place.
        weights: Constant tensors by name.
        maker: Tensor name -> the node that makes it.
        readers: Tensor name -> (node, input position) of everyone who reads it.
        outputs: Names that must stay: the graph's outputs, and what the branches of If and the
            bodies of Loop and Scan read from around them.
        by_name: Node name -> node.
        files: Large weights on disk, of a model that is larger than memory; None for most.
    """

    proto: onnx.ModelProto
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)
    maker: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    by_name: dict[str, onnx.NodeProto] = field(default_factory=dict)
    files: ExternalData | None = None

    def __post_init__(self) -> None:
        self.index()

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes, in topological order."""
        return list(self.proto.graph.node)

    def index(self) -> None:
        """Rebuild the look-ups and give every node a unique name."""
        graph = self.proto.graph
        self.weights = {w.name: w for w in graph.initializer}
        self.maker, self.readers = {}, {}
        self.outputs = frozenset(o.name for o in graph.output) | _read_inside(graph)
        self.by_name = {}
        for position, node in enumerate(graph.node):
            if not node.name or node.name in self.by_name:
                node.name = f"{node.op_type}_{node.output[0] or position}"
            self.by_name[node.name] = node
            self.maker.update(dict.fromkeys(node.output, node))
            for i, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, i))

    def value(self, name: str) -> Array | None:
        """Return a constant tensor's value, or None if the tensor is computed."""
        found = self.weights.get(name)
        if found is not None and self.files is not None and is_external(found):
            return self.files.read(found)
        return None if found is None else numpy_helper.to_array(found)

    def is_float_weight(self, name: str) -> bool:
        """Whether this is a float32 constant."""
        return name in self.weights and self.weights[name].data_type == onnx.TensorProto.FLOAT

    def add_weight(self, name: str, value: Array) -> str:
        """Add or replace a constant; return its name."""
        if self.files is not None:
            return self.add_tensor(self.files.keep_array(name, value))
        return self.add_tensor(numpy_helper.from_array(value, name))

    def add_tensor(self, tensor: onnx.TensorProto) -> str:
        """Add or replace a constant that numpy has no type for; return its name."""
        name: str = tensor.name
        if self.files is not None:
            tensor = self.files.keep(tensor)
        if name in self.weights:
            self.weights[name].CopyFrom(tensor)
        else:
            self.proto.graph.initializer.append(tensor)
            self.weights[name] = self.proto.graph.initializer[-1]
        return name

    def insert_first(self, node: onnx.NodeProto) -> None:
        """Put a node that reads only constants before all others; `index` is up to the caller."""
        self.proto.graph.node.insert(0, node)

    def replace_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Make these the nodes, in this order, and index again."""
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(kept)
        self.index()

    def drop_unused_weights(self) -> None:
        """Remove constants that nobody reads."""
        kept = [
            w
            for w in self.proto.graph.initializer
            if w.name in self.readers or w.name in self.outputs
        ]
        if len(kept) < len(self.proto.graph.initializer):
            kept = [onnx.TensorProto.FromString(w.SerializeToString()) for w in kept]
            del self.proto.graph.initializer[:]
            self.proto.graph.initializer.extend(kept)
            self.index()


def _read_inside(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the tensors that graphs inside this one read; names of their own do no harm."""
    _, *inner = subgraphs(graph)
    return frozenset(name for part in inner for node in part.node for name in node.input)


def known_dims(proto: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Return the shape of every tensor of the main graph as far as it is known.

    A size that depends on the input is None; a tensor whose rank is not known is missing.
    """
    inferred = proto.graph  # as it is when it is too large to be handed to the checker
    if proto.ByteSize() < PROTO_LIMIT:
        inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    found: dict[str, list[int | None]] = {w.name: list(w.dims) for w in inferred.initializer}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        if info.type.tensor_type.HasField("shape"):
            found[info.name] = [
                d.dim_value if d.HasField("dim_value") else None
                for d in info.type.tensor_type.shape.dim
            ]
    return found


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """Return a node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
