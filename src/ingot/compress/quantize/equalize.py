"""Cross-layer equalization: even out the ranges of channels, so that one scale suits a layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx

from ingot.compress.method import Method
from ingot.compress.quantize._channels import Pair, find_pairs
from ingot.compress.quantize._graph import Graph, attributes
from ingot.compress.quantize.placement import linear_layers
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.qparams import sqnr_db, weight_grid
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Array, Data
from ingot.models.network import Form, Network, OnnxNetwork

ROUNDS = 100  # a chain of k layers settles in about k; residual blocks hold chains of two or three
SETTLED = 1e-3  # a change of a thousandth moves no integer
DEAD = 1e-12  # share of a layer's largest range below which a channel carries nothing


@dataclass(frozen=True)
class Equalize(Method):
    """Scale channels between neighbouring layers so that both have equal ranges; answers stay.

    Where a layer's result goes through positively homogeneous steps only (ReLU, pooling) into one
    other layer, `f(s x) = s f(x)` lets channel i be divided by `s_i` in the first and multiplied in
    the second: `s_i = sqrt(r1_i r2_i) / r2_i` with `r1_i` the largest magnitude of output channel i
    and `r2_i` that of input channel i, over all pairs until nothing changes. Then both ranges are
    `sqrt(r1_i r2_i)`. Put it in front of a quantizer with one scale per layer. Channels without
    weights on either side keep their scale. It needs no data and settles nothing about biases: a
    channel of tiny weights and a large bias makes a large activation.

    References:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019,
        equation 11. arXiv:1906.04721
    """

    form: ClassVar[Form] = "onnx"

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with evened ranges.

        Raises:
            RecipeError: No two layers can share out their ranges; the first reasons are named.
        """
        assert isinstance(net, OnnxNetwork)
        graph = prepare(net.proto)
        pairs, refused = find_pairs(graph)
        if not pairs:
            raise RecipeError(_no_pair(graph, refused))
        for name, reason in refused.items():
            run.log(name, operator=graph.by_name[name].op_type, left=reason)
        weights = _Weights(graph)
        before = {n: weights.of(graph.by_name[n]) for p in pairs for n in (p.first, p.second)}
        rounds = weights.settle(pairs)
        weights.write()
        for name, old in before.items():
            _log(run, graph, name, old)
        run.log("equalization", pairs=len(pairs), rounds=rounds)
        return OnnxNetwork(graph.proto)


def _no_pair(graph: Graph, refused: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{name!r}: {why}" for name, why in list(refused.items())[:3])
    return (
        "Equalize must find a layer whose result goes through nothing but positively homogeneous "
        f"steps (Relu, LeakyRelu, pooling) into one other layer; got {len(linear_layers(graph))} "
        f"layers and no such pair{f' ({reasons})' if reasons else ''}. "
        "Leave this method out, or quantize with one scale per channel."
    )


@dataclass(slots=True)
class _Weights:
    """Weights and biases under change, in double precision: factors of many rounds multiply."""

    graph: Graph
    values: dict[str, Array] = field(default_factory=dict)  # node name -> weights
    added: dict[tuple[str, int], Array] = field(default_factory=dict)  # node, position -> bias

    def of(self, node: onnx.NodeProto) -> Array:
        if node.name not in self.values:
            value = self.graph.value(node.input[1])
            assert value is not None
            self.values[node.name] = value.astype(np.float64)
        return self.values[node.name]

    def settle(self, pairs: Sequence[Pair]) -> int:
        """Equalize all pairs again and again until nothing changes; return the rounds it took."""
        for done in range(ROUNDS):
            if max(self.equalize(pair) for pair in pairs) < SETTLED:
                return done + 1
        return ROUNDS

    def equalize(self, pair: Pair) -> float:
        """Share out the ranges of one pair; return the largest change, |log s|."""
        first, second = (self.graph.by_name[name] for name in (pair.first, pair.second))
        one, two = self.of(first), self.of(second)
        by_input = input_view(second, two, pair.channels)
        factor = equalizing_factor(
            output_ranges(first, one), np.abs(by_input).max(axis=(1, 3)).ravel()
        )
        shape = (-1, *[1] * (one.ndim - 1)) if first.op_type == "Conv" else (-1,)
        self.values[first.name] = one / factor.reshape(shape)
        grouped = factor.reshape(len(by_input), 1, -1, 1)
        self.values[second.name] = (by_input * grouped).reshape(two.shape)
        for name, position, shape in pair.biases:
            bias = self.bias(name, position, shape)
            self.added[name, position] = bias / factor.reshape(-1, *[1] * (len(shape) - 1))
        return float(np.abs(np.log(factor)).max())

    def bias(self, name: str, position: int, shape: tuple[int, ...]) -> Array:
        if (name, position) not in self.added:
            value = self.graph.value(self.graph.by_name[name].input[position])
            assert value is not None
            aligned = value.reshape(value.shape[-len(shape) :])
            self.added[name, position] = np.broadcast_to(aligned.astype(np.float64), shape)
        return self.added[name, position]

    def write(self) -> None:
        """Store everything as float32 under names of its own: weights may be shared."""
        for name, value in self.values.items():
            node = self.graph.by_name[name]
            node.input[1] = self._store(f"{name}_equalized_weight", value)
        for (name, position), value in self.added.items():
            node = self.graph.by_name[name]
            node.input[position] = self._store(f"{name}_equalized_{position}", value)
        self.graph.index()
        self.graph.drop_unused_weights()

    def _store(self, name: str, value: Array) -> str:
        return self.graph.add_weight(name, np.ascontiguousarray(value, np.float32))


def equalizing_factor(first: Array, second: Array) -> Array:
    """Return `s = sqrt(r1 r2) / r2`: what divides the first layer and multiplies the second.

    Args:
        first: `r1`, the largest magnitude of each output channel of the first layer `(channels,)`.
        second: `r2`, that of each input channel of the second layer, same shape.

    Returns:
        Positive factors `(channels,)`; 1 where either range is zero.

    Examples:
        >>> equalizing_factor(np.array([1.0, 16.0, 0.0]), np.array([4.0, 4.0, 4.0]))
        array([0.5, 2. , 1. ])
    """
    alive = (first > DEAD * first.max(initial=0)) & (second > DEAD * second.max(initial=0))
    r1, r2 = np.where(alive, first, 1.0), np.where(alive, second, 1.0)
    factor: Array = np.sqrt(r1 * r2) / r2
    return factor


def output_ranges(node: onnx.NodeProto, weight: Array) -> Array:
    """Return the largest magnitude of each output channel, `(channels,)`."""
    axis = 0 if node.op_type == "Conv" else weight.ndim - 1
    found: Array = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    return found


def input_view(node: onnx.NodeProto, weight: Array, channels: int) -> Array:
    """Return weights as `(groups, outputs per group, channels per group, rest)`.

    Columns of a linear layer, and its several rows per channel after a flatten, are the rest.
    """
    if node.op_type != "Conv":
        return weight.reshape(1, 1, channels, -1)
    groups = int(attributes(node).get("group", 1))  # type: ignore[call-overload] # an int attribute
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def _log(run: Run, graph: Graph, name: str, old: Array) -> None:
    node = graph.by_name[name]
    new = graph.value(node.input[1])
    assert new is not None
    facts: dict[str, float] = {}
    for when, weight in (("before", old.astype(np.float32)), ("after", new)):
        ranges, grid = output_ranges(node, weight), weight_grid(weight, None)
        facts[f"least_range_{when}"] = float(ranges.min())
        facts[f"largest_range_{when}"] = float(ranges.max())
        restored = grid.dequantize(grid.quantize(weight))
        facts[f"tensor_sqnr_db_{when}"] = sqnr_db(weight, restored)
    run.log(name, operator=node.op_type, **facts)
