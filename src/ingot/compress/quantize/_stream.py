"""The residual stream of a pre-norm network: everything that writes to it and reads it.

A stream can be rotated if only linear layers, embedding tables and constants write to it, and only
layer norms and linear layers read it, each norm being read by linear layers alone or by none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from ingot.compress.quantize._graph import Graph, attributes, known_dims
from ingot.compress.quantize.placement import linear_layers

# These pick, repeat, reorder or average rows; that they leave the last axis alone is checked.
ROWWISE = frozenset(
    ("Concat", "Expand", "Gather", "Identity", "ReduceMean", "ReduceSum", "Reshape", "Slice")
) | frozenset(("Squeeze", "Transpose", "Unsqueeze"))
Dims = Mapping[str, list[int | None]]


@dataclass(slots=True)
class Stream:
    """A residual stream and its neighbours, by node name.

    Attributes:
        width: Channels.
        constants: (node, input position) of embedding tables and of constants that are added.
        writers: Linear layers whose results are added to it, and convolutions that cut pictures
            into its rows.
        readers: Linear layers that read it, and the layer norm they read it through, if any.
        norms: Its layer norms.
        restored: Those that no linear layer reads, as the last one of an encoder: a product behind
            them rotates back.
    """

    width: int
    constants: list[tuple[str, int]] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    readers: dict[str, str | None] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)


class _Left(Exception):
    """Why a stream cannot be rotated: a way out of the walk, never seen outside."""


def find_streams(graph: Graph) -> tuple[list[Stream], dict[str, str]]:
    """Return all streams that can be rotated, and why others cannot, by the norm they begin at.

    Args:
        graph: A prepared graph.
    """
    dims = known_dims(graph.proto)
    layers = frozenset(linear_layers(graph, ("Gemm", "MatMul")))
    streams, refused, seen = list[Stream](), dict[str, str](), set[str]()
    for norm in [n for n in graph.nodes if n.op_type == "LayerNormalization"]:
        if norm.input[0] in seen:
            continue
        walk = _Walk(graph, dims, layers, Stream((dims.get(norm.input[1]) or [None])[-1] or 0))
        try:
            walk.from_tensor(norm.input[0])
            streams.append(walk.stream)
        except _Left as left:
            refused[norm.name] = str(left)
        seen |= walk.seen
    return streams, refused


@dataclass(slots=True)
class _Walk:
    """Visit every tensor of one stream."""

    graph: Graph
    dims: Dims
    layers: frozenset[str]
    stream: Stream
    seen: set[str] = field(default_factory=set)
    waiting: list[str] = field(default_factory=list)

    def from_tensor(self, tensor: str) -> None:
        self.add(tensor)
        while self.waiting:
            name = self.waiting.pop()
            self.visit_maker(name)
            self.visit_readers(name)
        if not self.stream.readers:
            raise _Left("no linear layer reads it")

    def add(self, tensor: str) -> None:
        if tensor not in self.seen:
            self.seen.add(tensor)
            self.waiting.append(tensor)
            if self.dims.get(tensor, [None])[-1:] != [self.stream.width]:
                raise _Left(f"the width of {tensor!r} is not known to be {self.stream.width}")

    def visit_maker(self, tensor: str) -> None:
        node = self.graph.maker.get(tensor)
        if node is None:
            raise _Left(f"{tensor!r} is given by the caller")
        if node.op_type == "Add" or self.scales(node):
            self.operands(node, range(2))
        elif node.name in self.layers:
            self.write(node)
        elif node.op_type == "Gather" and node.input[0] in self.graph.weights:
            self.constant(node, 0)
        elif node.op_type in ROWWISE and self.keeps_rows(node):
            self.operands(node, range(len(node.input) if node.op_type == "Concat" else 1))
        elif (patches := self.patches(node)) is not None:
            self.check_bias(patches)
            self.stream.writers.append(patches.name)
        else:
            raise _Left(f"{node.op_type} {node.name!r} writes to it")

    def patches(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the convolution whose output pixels this node makes the rows of the stream."""
        flat = self.graph.maker.get(node.input[0])
        conv = self.graph.maker.get(flat.input[0]) if flat is not None and flat.input else None
        if conv is None or flat is None or conv.op_type != "Conv" or flat.op_type != "Reshape":
            return None
        parts, pixels = self.dims.get(conv.output[0], []), self.dims.get(flat.output[0], [])
        area = np.prod([size or 0 for size in parts[2:]])
        swaps = list(attributes(node).get("perm", [])) == [0, 2, 1]  # type: ignore[call-overload] # ints
        alone = all(
            len(self.graph.readers[n.output[0]]) == 1 and n.output[0] not in self.graph.outputs
            for n in (conv, flat)
        )
        whole = attributes(conv).get("group", 1) == 1
        fits = swaps and alone and whole and area > 0 and pixels[1:] == [self.stream.width, area]
        return conv if fits and self.graph.is_float_weight(conv.input[1]) else None

    def operands(self, node: onnx.NodeProto, positions: range) -> None:
        for position in positions:
            name = node.input[position]
            if name not in self.graph.weights:
                self.add(name)
            elif self.dims[name][-1:] == [self.stream.width]:
                self.constant(node, position)
            elif self.dims[name][-1:] not in ([], [1]):  # one value for all channels: 1 Q = 1
                raise _Left(f"{name!r} has another width")

    def constant(self, node: onnx.NodeProto, position: int) -> None:
        name, width = node.input[position], self.stream.width
        by_row = attributes(node).get("axis", 0) == 0 and len(self.dims[name]) == 2
        if node.op_type == "Gather" and not by_row:
            raise _Left(f"{node.op_type} {node.name!r} writes to it")
        if not self.graph.is_float_weight(name) or self.dims[name][-1] != width:
            raise _Left(f"{name!r} is no float constant of its width")
        self.stream.constants.append((node.name, position))

    def write(self, node: onnx.NodeProto) -> None:
        weight = self.graph.weights[node.input[1]]
        if len(weight.dims) != 2 or weight.dims[1] != self.stream.width:
            raise _Left(f"{node.name!r} has another width")
        self.check_bias(node)
        self.stream.writers.append(node.name)

    def check_bias(self, node: onnx.NodeProto) -> None:
        if len(node.input) < 3 or not node.input[2]:
            return
        width = self.graph.weights[node.input[1]].dims[0 if node.op_type == "Conv" else 1]
        is_vector = node.input[2] in self.graph.weights and self.dims[node.input[2]] == [width]
        if not is_vector or attributes(node).get("beta", 1.0) != 1.0:
            raise _Left(f"the bias of {node.name!r} is not one constant per column")

    def visit_readers(self, tensor: str) -> None:
        if tensor in self.graph.outputs:
            raise _Left(f"{tensor!r} is an output")
        for node, position in self.graph.readers.get(tensor, ()):
            if node.op_type == "LayerNormalization" and position == 0:
                self.visit_norm(node)
            elif node.name in self.layers and position == 0:
                self.read(node, None)
            elif node.op_type == "Add" or self.scales(node) or self.moves(node, position):
                self.add(node.output[0])
            elif node.op_type not in ("Shape", "Size"):
                raise _Left(f"{node.op_type} {node.name!r} reads it")

    def visit_norm(self, node: onnx.NodeProto) -> None:
        rank, width = len(self.dims[node.input[0]]), self.stream.width
        last = attributes(node).get("axis", -1) in (-1, rank - 1)
        constants = [name for name in node.input[1:] if name]
        plain = all(self.graph.is_float_weight(n) and self.dims[n] == [width] for n in constants)
        if not last or not plain or any(o in self.graph.readers for o in node.output[1:]):
            raise _Left(f"{node.name!r} is no plain norm of the last axis")
        self.stream.norms.append(node.name)
        ends = self.ends(node.output[0])
        linear = [n for n, i in ends if n is not None and n.name in self.layers and i == 0]
        if not linear:
            self.stream.restored.append(node.name)
        elif len(linear) < len(ends):
            kinds = ["the caller" if n is None else n.op_type for n, _ in ends if n not in linear]
            hint = ": a post-norm network" if "Add" in kinds else ""
            raise _Left(f"{kinds[0]} reads the result of a norm beside linear layers{hint}")
        for layer in linear:
            self.read(layer, node.name)

    def ends(self, tensor: str) -> list[tuple[onnx.NodeProto | None, int]]:
        """Return who reads a tensor and where, past what moves rows; None is the caller."""
        found: list[tuple[onnx.NodeProto | None, int]] = []
        if tensor in self.graph.outputs:
            found.append((None, 0))
        for node, position in self.graph.readers.get(tensor, ()):
            if node.op_type != "Concat" and self.moves(node, position):
                found += self.ends(node.output[0])
            elif node.op_type not in ("Shape", "Size"):
                found.append((node, position))
        return found

    def read(self, node: onnx.NodeProto, norm: str | None) -> None:
        if len(self.graph.weights[node.input[1]].dims) != 2:
            raise _Left(f"the weights of {node.name!r} are not a matrix")
        self.check_bias(node)
        self.stream.readers[node.name] = norm

    def scales(self, node: onnx.NodeProto) -> bool:
        """Whether this multiplies or divides by one constant number."""
        if node.op_type not in ("Mul", "Div"):
            return False
        candidates = node.input[1:] if node.op_type == "Div" else node.input
        return any(n in self.graph.weights and self.dims[n] in ([], [1]) for n in candidates)

    def moves(self, node: onnx.NodeProto, position: int) -> bool:
        data = node.op_type == "Concat" or position == 0
        return node.op_type in ROWWISE and data and self.keeps_rows(node)

    def keeps_rows(self, node: onnx.NodeProto) -> bool:
        """Whether the last axis goes through as it is."""
        dims, options = self.dims.get(node.input[0], []), attributes(node)
        rank, width = len(dims), self.stream.width
        if dims[-1:] != [width] or self.dims.get(node.output[0], [])[-1:] != [width]:
            return False
        if node.op_type in ("Concat", "Gather"):
            axis = int(options.get("axis", 0))  # type: ignore[call-overload] # an int attribute
            return bool(axis % rank != rank - 1)
        if node.op_type == "Transpose":
            order = list(options.get("perm", [0]))  # type: ignore[call-overload] # ints
            return bool(order[-1] == rank - 1)
        if node.op_type in ("ReduceMean", "ReduceSum", "Slice"):
            at = 3 if node.op_type == "Slice" else 1
            given = self.graph.value(node.input[at]) if len(node.input) > at else None
            axes = options.get("axes", []) if given is None else given.ravel()
            where = [int(a) % rank for a in axes]  # type: ignore[attr-defined] # ints
            return bool(where) and rank - 1 not in where
        return True
