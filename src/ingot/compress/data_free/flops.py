"""What compressing costs, layer by layer and end to end, in multiply-accumulates."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.compress.quantize._graph import Graph, attributes
from ingot.compress.quantize.moments import MOST_ROWS

# The smaller of the two published settings of a generative method: 400 epochs of 200 batches of 16
# (Xu et al., Generative Low-bitwidth Data Free Quantization, 2020, arXiv:2003.03603).
GENERATIVE_STEPS, GENERATIVE_BATCH = 80_000, 16


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Sizes of one layer, for one example.

    Attributes:
        groups: Groups of a convolution; 1 for a linear layer.
        outputs: Outputs per group.
        inputs: Weights per output.
        positions: Output pixels; 1 for a linear layer of vectors.
    """

    groups: int
    outputs: int
    inputs: int
    positions: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one example."""
        return self.groups * self.outputs * self.inputs * self.positions


def layer_costs(
    graph: Graph, layers: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, LayerCost]:
    """Return the sizes of each layer.

    Args:
        graph: A prepared graph.
        layers: Names of Conv, Gemm and MatMul nodes with constant weights.
        shapes: Shape of every tensor for one example.
    """
    found = {}
    for name in layers:
        node = graph.by_name[name]
        weight, out = list(graph.weights[node.input[1]].dims), shapes[node.output[0]]
        if node.op_type == "Conv":
            groups = int(attributes(node).get("group", 1))  # type: ignore[call-overload] # an int attribute
            sizes = (groups, weight[0] // groups, int(np.prod(weight[1:])))
            found[name] = LayerCost(*sizes, int(np.prod(out[2:])))
        else:
            matrices = int(np.prod(weight[:-2]))
            positions = int(np.prod(out)) // (weight[-1] * matrices)
            found[name] = LayerCost(matrices, weight[-1], weight[-2], positions)
    return found


def layerwise_macs(macs: Collection[int], steps: int, batch: int) -> int:
    """Return sum_l steps * batch * 4 MAC_l: teacher, student, and twice for going backwards.

    Args:
        macs: Multiply-accumulates of each layer for one example.
        steps: Steps per layer.
        batch: Examples per step.
    """
    return steps * batch * 4 * sum(macs)


def generative_macs(macs: Collection[int], steps: int, batch: int, *, generator: int = 0) -> int:
    """Return steps * batch * (4 MAC of the whole network + 3 MAC of the generator).

    Args:
        macs: Multiply-accumulates of each layer for one example.
        steps: Steps of training end to end.
        batch: Examples per step.
        generator: Multiply-accumulates of the generator for one example.
    """
    return steps * batch * (4 * sum(macs) + 3 * generator)


def moment_macs(costs: Collection[LayerCost], steps: int, rows: int, at_once: int) -> int:
    """Return what training on second moments costs.

    Each layer pays once for the moments, `rows used * inputs^2`, once for GPTQ, and at each step
    for one product `outputs * inputs^2`, which is error and gradient in one.

    Args:
        costs: Sizes of each layer.
        steps: Steps per layer.
        rows: Examples that are drawn per layer.
        at_once: Examples per batch; of each batch at most 8,192 patches are used.
    """
    total = 0
    for c in costs:
        used = -(-rows // at_once) * min(MOST_ROWS, at_once * c.positions)
        products = (steps + 1) * c.outputs * c.inputs**2
        gptq = c.inputs**3 + c.outputs * c.inputs**2
        total += c.groups * (used * c.inputs**2 + products + gptq)
    return total
