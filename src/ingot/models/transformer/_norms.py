"""Layer normalization and root-mean-square normalization, in one node or in many."""

from dataclasses import dataclass

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._graph import Graph, Node
from ingot.models.transformer.refusal import NotRecognized
from ingot.models.transformer.spec import Norm as Style

_RMS = ("RMSNormalization", "SimplifiedLayerNormalization")
_RMS_VENDOR = "com.microsoft::SimplifiedLayerNormalization"


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A norm over the last axis.

    Attributes:
        inputs: The tensor that enters.
        output: The tensor that leaves.
        nodes: What it is made of.
        style: With the mean taken off, or without.
        epsilon: Added to the variance.
        weight: `[hidden]`.
        bias: `[hidden]`, or None.
    """

    inputs: tuple[str, ...]
    output: str
    nodes: tuple[Node, ...]
    style: Style
    epsilon: float
    weight: Array
    bias: Array | None

    def shape(self, entering: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of what leaves."""
        return entering

    def named(self, name: str) -> dict[str, Array]:
        """Return its tensors under a name."""
        found = {f"{name}.weight": self.weight}
        return found if self.bias is None else found | {f"{name}.bias": self.bias}


def find_norm(graph: Graph, node: Node) -> Norm | None:
    """Return the norm that this node is, or whose root it takes."""
    if node.op in ("LayerNormalization", *_RMS, _RMS_VENDOR):
        return _whole(graph, node)
    if node.op == "Sqrt":
        return _decomposed(graph, node)
    return None


def _whole(graph: Graph, node: Node) -> Norm:
    if node.attribute("axis", -1) not in (-1, 2) or any(
        not graph.is_constant(name) for name in node.inputs[1:] if name
    ):
        raise NotRecognized(f"{node.label} has no constant weights over the last axis")
    weight = graph.constant(node.inputs[1])
    bias = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    style: Style = "layer" if node.op == "LayerNormalization" else "rms"
    epsilon = float(node.attribute("epsilon", 1e-5))
    return _norm((node.inputs[0], node.outputs[0]), (node,), style, epsilon, (weight, bias))


def _norm(
    ends: tuple[str, str],
    nodes: tuple[Node, ...],
    style: Style,
    epsilon: float,
    values: tuple[Array, Array | None],
) -> Norm:
    weight, bias = (
        None if v is None else np.ascontiguousarray(v, np.float32).reshape(-1) for v in values
    )
    assert weight is not None
    return Norm((ends[0],), ends[1], nodes, style, float(f"{epsilon:.6g}"), weight, bias)


def _decomposed(graph: Graph, root: Node) -> Norm | None:
    """Follow sqrt(mean(d^2) + e) to d above it and to d / sqrt(...) * weight + bias below it."""
    add = graph.maker.get(root.inputs[0])
    epsilon = _constant_of(graph, add, "Add")
    if add is None or epsilon is None or epsilon.size != 1:
        return None
    mean = graph.maker.get(_other(graph, add))
    power = graph.maker.get(mean.inputs[0]) if mean is not None and _is_mean(graph, mean) else None
    if mean is None or power is None or not _is_square(graph, power):
        return None
    d = power.inputs[0]
    source, above = _centred(graph, d)
    quotient = _quotient(graph, root, d)
    if quotient is None:
        return None
    weighted = graph.only_reader(quotient[-1].outputs[0], "Mul")
    weight = _constant_of(graph, weighted, "Mul")
    if weighted is None or weight is None:
        return None
    nodes = [*above, power, mean, add, root, *quotient, weighted]
    shifted = graph.only_reader(weighted.outputs[0], "Add") if above else None
    bias = _constant_of(graph, shifted, "Add")
    if shifted is not None and bias is not None and bias.size == weight.size:
        nodes.append(shifted)
    else:
        bias = None
    nodes.sort(key=lambda node: node.place)
    ends = (source, nodes[-1].outputs[0])
    style: Style = "layer" if above else "rms"
    return _norm(ends, tuple(nodes), style, float(epsilon.item()), (weight, bias))


def _centred(graph: Graph, d: str) -> tuple[str, list[Node]]:
    """Return what d is made from: x if d is x - mean(x), else d itself."""
    centre = graph.maker.get(d)
    if centre is None or centre.op != "Sub":
        return d, []
    mean = graph.maker.get(centre.inputs[1])
    if mean is None or not _is_mean(graph, mean) or mean.inputs[0] != centre.inputs[0]:
        return d, []
    return centre.inputs[0], [mean, centre]


def _quotient(graph: Graph, root: Node, d: str) -> list[Node] | None:
    """Return the nodes of d / root: a Div, or a reciprocal and a Mul."""
    below = graph.only_reader(root.outputs[0], "Div", "Reciprocal")
    if below is None:
        return None
    if below.op == "Div" and below.inputs == (d, root.outputs[0]):
        return [below]
    one = below.op == "Reciprocal" or (
        graph.is_constant(below.inputs[0]) and bool((graph.constant(below.inputs[0]) == 1).all())
    )
    times = graph.only_reader(below.outputs[0], "Mul")
    return [below, times] if one and times is not None and d in times.inputs else None


def _is_mean(graph: Graph, node: Node) -> bool:
    """Whether this is a mean over the last axis that keeps it."""
    if node.op != "ReduceMean" or not node.attribute("keepdims", 1):
        return False
    axes = node.attribute("axes")
    if len(node.inputs) > 1 and graph.is_constant(node.inputs[1]):
        axes = graph.constant(node.inputs[1]).tolist()
    return axes is not None and list(axes) in ([-1], [2])


def _is_square(graph: Graph, node: Node) -> bool:
    if node.op == "Mul":
        return node.inputs[0] == node.inputs[1]
    if node.op != "Pow" or not graph.is_constant(node.inputs[1]):
        return False
    return bool((graph.constant(node.inputs[1]) == 2).all())


def _constant_of(graph: Graph, node: Node | None, op: str) -> Array | None:
    if node is None or node.op != op:
        return None
    return next((graph.constant(n) for n in node.inputs if graph.is_constant(n)), None)


def _other(graph: Graph, node: Node) -> str:
    return next((n for n in node.inputs if not graph.is_constant(n)), "")
