"""Where quantize/dequantize pairs go: the edges that both engines turn into integer kernels.

A pair sits on an *edge* (a tensor as one node reads it), not on a tensor, so that a residual branch
beside a quantized linear layer keeps its float values.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx

from ingot.compress.quantize._graph import Graph, attributes
from ingot.core.errors import RecipeError
from ingot.core.names import suggest

LINEAR = ("Conv", "Gemm", "MatMul")
JOINING = ("Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "ReduceMean")
OPERATORS = (*LINEAR, *JOINING)
Edge = tuple[str, int]  # node name, input position
# These only move values: engines run them on integers when both sides carry the same grid.
SHARING = frozenset(
    ["Concat", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"]
)
FUSED_ACTIVATIONS = frozenset({"Clip", "Relu"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes an integer.

    Attributes:
        weights: Node name -> (position of its weight, channel axis) for every layer that runs as
            integers.
        edges: Tensor name -> who reads its quantized form. A reader `("", 0)` stands for the
            graph's output.
        shared: Tensor name -> the tensor whose grid it takes.
        signed: Tensors that take a symmetric int8 grid, because both sides of their product are
            activations and engines fuse no zero point there.
        tables: Embedding tables read by Gather, stored as int8.
    """

    weights: dict[str, tuple[int, int]] = field(default_factory=dict)
    edges: dict[str, set[Edge]] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    signed: set[str] = field(default_factory=set)
    tables: tuple[str, ...] = ()

    @property
    def observed(self) -> tuple[str, ...]:
        """Tensors whose range has to be known, sorted."""
        return tuple(sorted({self.root(name) for name in self.edges}))

    def root(self, name: str) -> str:
        """Return the tensor whose grid this one takes."""
        while name in self.shared:
            name = self.shared[name]
        return name


def linear_layers(graph: Graph, operators: Collection[str] = LINEAR) -> dict[str, tuple[int, int]]:
    """Return every layer with constant float weights: node name -> (weight position, channel axis).

    The axis is that of the output channels: 0 for Conv, the last for Gemm and MatMul.
    """
    found = {}
    for node in graph.nodes:
        if node.op_type not in LINEAR or node.op_type not in operators:
            continue
        if len(node.input) < 2 or not graph.is_float_weight(node.input[1]):
            continue
        if node.input[0] in graph.weights or len(graph.weights[node.input[1]].dims) < 2:
            continue
        if node.op_type == "Gemm" and (
            attributes(node).get("transA") or attributes(node).get("transB")
        ):
            continue
        axis = 0 if node.op_type == "Conv" else len(graph.weights[node.input[1]].dims) - 1
        found[node.name] = (1, axis)
    return found


def embedding_tables(graph: Graph, least: int = 1024) -> tuple[str, ...]:
    """Return float tables `(rows, width)` that are only read by Gather along axis 0.

    Args:
        graph: Where to look.
        least: Elements from which storing integers saves more than scales cost.
    """
    found = []
    for name, weight in graph.weights.items():
        readers = graph.readers.get(name, ())
        by_row = readers and all(
            node.op_type == "Gather" and i == 0 and attributes(node).get("axis", 0) == 0
            for node, i in readers
        )
        big = len(weight.dims) == 2 and weight.dims[0] * weight.dims[1] >= least
        if by_row and big and graph.is_float_weight(name):
            found.append(name)
    return tuple(sorted(found))


def check_names(graph: Graph, skip: Collection[str]) -> None:
    """Check that every name to skip is a layer of the graph.

    Raises:
        RecipeError: A name is unknown; the nearest is offered.
    """
    known = {node.name for node in graph.nodes if node.op_type in OPERATORS} | set(graph.weights)
    for name in skip:
        if name not in known:
            layers = {n.name for n in graph.nodes if n.op_type in OPERATORS}
            raise RecipeError(
                f"skip must name layers of the model; got {name!r}. " + suggest(name, layers)
            )


def check_table_bits(bits: int) -> None:
    """Check the bits of embedding tables.

    Raises:
        RecipeError: Other than 8, 4 or 0.
    """
    if bits not in (0, 4, 8) or bits is True:
        raise RecipeError(
            f"embeddings must be 8 or 4 bits, or 0 to leave tables in float; got {bits!r}. "
            "Leave it out for 8."
        )


def check_operators(operators: Collection[str], valid: Collection[str] = OPERATORS) -> None:
    """Check that every operator type is one that can be quantized.

    Raises:
        RecipeError: A type is unknown, or none is given.
    """
    unknown = next((o for o in operators if o not in valid), None)
    if unknown is not None or not operators:
        raise RecipeError(
            f"operators must name operator types that can be quantized; got {unknown or 'none'!r}. "
            + suggest(unknown or "", valid)
        )


def place(
    graph: Graph,
    *,
    operators: Collection[str] = OPERATORS,
    skip: Collection[str] = (),
    attention: bool = False,
    embeddings: bool = True,
) -> Plan:
    """Return where quantize/dequantize pairs go.

    Convolutions and linear layers read integers. What joins or moves their results (Add, pooling,
    Concat, Pad) does so only on the way to another integer layer, so softmax, layer norms, masks
    and the residual stream of a transformer stay in float.

    Args:
        graph: A prepared graph.
        operators: Operator types that may run as integers.
        skip: Names of nodes (or tables) that stay in float.
        attention: Also quantize both inputs of products of two activations that feed a softmax.
        embeddings: Also store embedding tables as int8.

    Raises:
        RecipeError: Nothing in the graph can be quantized, or a name is unknown.
    """
    plan = place_weights(graph, operators=operators, skip=skip, embeddings=embeddings)
    _Placer(graph, frozenset(operators), frozenset(skip), attention, plan).walk()
    return plan


def place_weights(
    graph: Graph,
    *,
    operators: Collection[str] = LINEAR,
    skip: Collection[str] = (),
    embeddings: bool = True,
) -> Plan:
    """Return a plan that stores weights as int8 and leaves every activation in float.

    Args:
        graph: A prepared graph.
        operators: Operator types whose weights may be stored as integers.
        skip: Names of nodes (or tables) that stay in float.
        embeddings: Also store embedding tables as int8.

    Raises:
        RecipeError: Nothing in the graph can be quantized, or a name is unknown.
    """
    check_operators(operators)
    check_names(graph, skip)
    layers = linear_layers(graph, operators)
    kept = {name: where for name, where in layers.items() if name not in skip}
    if not kept:
        raise RecipeError(
            f"The model must hold a layer that can be quantized ({', '.join(LINEAR)} with "
            f"constant float weights, not in skip); got {len(layers)} such layers and "
            f"{len(skip)} names to skip. "
            "Leave this method out of the recipe."
        )
    tables = embedding_tables(graph) if embeddings else ()
    return Plan(kept, tables=tuple(t for t in tables if t not in skip))


@dataclass(slots=True)
class _Placer:
    """One backward walk: what reads integers asks for its inputs to be integers."""

    graph: Graph
    operators: frozenset[str]
    skip: frozenset[str]
    attention: bool
    plan: Plan
    # Branches meet again and again in a residual network: each node is judged once.
    known: dict[str, bool] = field(default_factory=dict)

    def walk(self) -> None:
        for node in reversed(self.graph.nodes):
            if node.name in self.plan.weights:
                self.quantize_layer(node)
            elif node.name not in self.skip:
                self.pass_through(node)

    def quantize_layer(self, node: onnx.NodeProto) -> None:
        self.request(node, 0)
        if node.op_type == "Conv":
            # An integer convolution kernel also needs an integer result.
            self.request_output(self.end_of_fusion(node))

    def pass_through(self, node: onnx.NodeProto) -> None:
        if node.op_type == "MatMul" and self.attention and self.feeds_softmax(node):
            self.request(node, 0)
            self.request(node, 1)
            self.plan.signed.update(node.input)
        elif node.op_type in FUSED_ACTIVATIONS:
            return  # part of the kernel before it
        elif self.is_read_as_integer(self.end_of_fusion(node)) and self.makes_integers(node):
            for position in self.joined(node):
                self.request(node, position)
            if node.op_type in SHARING:
                self.share(node)

    def request(self, node: onnx.NodeProto, position: int) -> None:
        """Ask that this input be an integer; constants are left to the engines to fold."""
        if node.input[position] not in self.graph.weights:
            self.plan.edges.setdefault(node.input[position], set()).add((node.name, position))

    def request_output(self, node: onnx.NodeProto) -> None:
        name = node.output[0]
        for reader, position in self.graph.readers.get(name, ()):
            self.plan.edges.setdefault(name, set()).add((reader.name, position))
        if name in self.graph.outputs:
            self.plan.edges.setdefault(name, set()).add(("", 0))

    def share(self, node: onnx.NodeProto) -> None:
        """Give both sides of what only moves values the same grid: that of the wider side."""
        result = node.output[0]
        if node.op_type == "Concat":
            for name in node.input:
                if name in self.plan.edges and self.plan.root(name) != self.plan.root(result):
                    self.plan.shared[self.plan.root(name)] = self.plan.root(result)
        elif self.plan.root(result) != self.plan.root(node.input[0]):
            self.plan.shared[self.plan.root(result)] = self.plan.root(node.input[0])

    def joined(self, node: onnx.NodeProto) -> range:
        return range(len(node.input) if node.op_type in ("Add", "Concat") else 1)

    def makes_integers(self, node: onnx.NodeProto) -> bool:
        """Whether this node's values come from an integer convolution, by integer operators."""
        if node.name not in self.known:
            self.known[node.name] = self._makes_integers(node)
        return self.known[node.name]

    def _makes_integers(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Conv":
            return node.name in self.plan.weights
        if node.name in self.skip or not self.may_run_as_integer(node):
            return False
        makers = (self.graph.maker.get(node.input[i]) for i in self.joined(node))
        return any(m is not None and self.makes_integers(m) for m in makers)

    def may_run_as_integer(self, node: onnx.NodeProto) -> bool:
        if node.op_type in JOINING and node.op_type not in self.operators:
            return False
        if node.op_type == "Add":
            return not any(name in self.graph.weights for name in node.input)
        if node.op_type == "Pad":
            return self.pads_with_zero(node)
        return node.op_type in (*JOINING, *SHARING, *FUSED_ACTIVATIONS)

    def end_of_fusion(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Return the activation that engines fuse into this node, or the node."""
        readers = self.graph.readers.get(node.output[0], ())
        if len(readers) == 1 and readers[0][0].op_type in FUSED_ACTIVATIONS and readers[0][1] == 0:
            return readers[0][0]
        return node

    def is_read_as_integer(self, node: onnx.NodeProto) -> bool:
        return node.output[0] in self.plan.edges

    def pads_with_zero(self, node: onnx.NodeProto) -> bool:
        fill = self.graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        constant = attributes(node).get("mode", b"constant") == b"constant"
        return constant and (fill is None or not fill.any())

    def feeds_softmax(self, node: onnx.NodeProto) -> bool:
        if any(name in self.graph.weights for name in node.input):
            return False
        for _ in range(4):
            readers = self.graph.readers.get(node.output[0], ())
            if len(readers) != 1:
                return False
            node = readers[0][0]
            if node.op_type == "Softmax":
                return True
            if node.op_type not in ("Add", "Div", "Mul", "Where"):
                return False
        return False
