"""Inputs of layers, made up from what batch norms remember of the training data.

A batch norm with scale g and shift b gave, on the training data, channels of mean b and standard
deviation |g|. Its output is drawn from N(b, g^2); what lies between it and a layer is run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import onnx

from ingot.compress.quantize._graph import Graph, attributes
from ingot.core.errors import RecipeError
from ingot.data.data import Array

if TYPE_CHECKING:
    import torch

Inputs = Literal["bn", "normal", "network"]


def check_inputs(inputs: str) -> None:
    """Check the name of a model of layer inputs.

    Raises:
        RecipeError: It is unknown.
    """
    if inputs not in get_args(Inputs):
        raise RecipeError(
            f"inputs must be one of {', '.join(get_args(Inputs))}; got {inputs!r}. "
            "Use 'bn', or 'network' for networks without batch norms."
        )


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """Channels that are independent and normal.

    Attributes:
        mean: `(channels,)`, float64.
        std: `(channels,)`, float64, not negative.
    """

    mean: Array
    std: Array


def norm_statistics(graph: Graph) -> dict[str, Gaussian]:
    """Return what every batch norm that still stands says about its output, by tensor name."""
    found = {}
    for node in graph.nodes:
        constant = all(graph.is_float_weight(name) for name in node.input[1:3])
        if node.op_type != "BatchNormalization" or attributes(node).get("training_mode", 0):
            continue
        gain, shift = graph.value(node.input[1]), graph.value(node.input[2])
        if constant and gain is not None and shift is not None:
            scale = np.abs(gain.astype(np.float64))
            found[node.output[0]] = Gaussian(shift.astype(np.float64), scale)
    return found


class LayerInputs:
    """Draws values of any tensor of a graph.

    Where no batch norm lies on the way back, the network's inputs are drawn from N(0, 1): that is
    what input normalization makes of them.

    Args:
        graph: A prepared graph, batch norms folded or not; it is not changed afterwards.
        statistics: Tensor -> its distribution; tensors named as in `graph`.
        coarse: Share, 0 to 1, of the variance that neighbouring pixels have in common. That part
            is drawn at a half, a quarter, ... of the resolution and enlarged.
    """

    def __init__(
        self, graph: Graph, statistics: Mapping[str, Gaussian], *, coarse: float = 0.0
    ) -> None:
        from ingot.models.torch_graph import TorchGraph

        self.graph, self.statistics, self.coarse = graph, statistics, coarse
        self.network = TorchGraph(graph.proto)
        self._sizes = {name: _input_shape(v) for name, v in _inputs(graph).items()}

    def sources(self, tensor: str) -> list[str]:
        """Return what is drawn to get this tensor: batch norms' outputs and network inputs."""
        found, left, seen = [], [tensor], set()
        while left:
            name = left.pop()
            if name in seen or name in self.graph.weights or not name:
                continue
            seen.add(name)
            maker = self.graph.maker.get(name)
            if name in self.statistics or maker is None:
                found.append(name)
            else:
                left.extend(maker.input)
        return sorted(found)

    def sample(
        self, tensors: Sequence[str], rows: int, generator: "torch.Generator"
    ) -> "dict[str, torch.Tensor]":
        """Draw these tensors together, `(rows, channels, ...)` each.

        Args:
            tensors: Names of tensors of the graph.
            rows: How many examples.
            generator: The source of randomness.
        """
        import torch

        sources = sorted({s for name in tensors for s in self.sources(name)})
        feeds = {name: self._draw(name, rows, generator) for name in sources}
        with torch.no_grad():
            return self.network.run(feeds, list(tensors))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that a node makes, for one example."""
        import torch

        made = [name for node in self.graph.nodes for name in node.output if name]
        feeds = {name: torch.zeros(1, *size) for name, size in self._sizes.items()}
        with torch.no_grad():
            values = self.network.run(feeds, made)
        return {name: tuple(value.shape) for name, value in values.items()}

    def _draw(self, name: str, rows: int, generator: "torch.Generator") -> "torch.Tensor":
        import torch

        known = self.statistics.get(name)
        if known is None:
            return self._noise((rows, *self._sizes[name]), generator)
        noise = self._noise((rows, *self.shapes[name][1:]), generator)
        shape = [1, -1] + [1] * (noise.ndim - 2)
        mean, std = (torch.from_numpy(v).float().reshape(shape) for v in (known.mean, known.std))
        return mean + std * noise

    def _noise(self, shape: tuple[int, ...], generator: "torch.Generator") -> "torch.Tensor":
        """Draw N(0, 1) with correlated neighbours; every single value has variance 1."""
        import torch

        fine = torch.randn(shape, generator=generator)
        factors = [2**k for k in range(1, 8) if 2**k <= max(shape[2:], default=0)]
        if len(shape) != 4 or not self.coarse or not factors:
            return fine
        total = fine * (1 - self.coarse) ** 0.5
        for factor in factors:
            small = [-(-size // factor) for size in shape[2:]]
            drawn = torch.randn((*shape[:2], *small), generator=generator)
            down, right = (_enlarge(a, b) for a, b in zip(small, shape[2:], strict=True))
            total += (self.coarse / len(factors)) ** 0.5 * (down @ drawn @ right.T)
        return total


def _enlarge(small: int, size: int) -> "torch.Tensor":
    """Return `(size, small)`: linear interpolation whose results have the variance of its inputs.

    Rows are divided by their length: a mean of two independent values would else vary less.
    """
    import torch

    place = (np.arange(size) + 0.5) * small / size - 0.5
    distance = np.abs(np.clip(place, 0, small - 1)[:, None] - np.arange(small))
    weight = np.maximum(0, 1 - distance)
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    return torch.from_numpy(weight).float()


def _inputs(graph: Graph) -> dict[str, onnx.ValueInfoProto]:
    return {i.name: i for i in graph.proto.graph.input if i.name not in graph.weights}


def _input_shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    kind, shape = value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim
    sizes = tuple(int(d.dim_value) for d in shape[1:])
    if kind != onnx.TensorProto.FLOAT or not sizes or not all(sizes):
        raise RecipeError(
            "Inputs must be float and of known size, but for the batch, to be made up; input "
            f"{value.name!r} has {[d.dim_param or d.dim_value for d in shape]}. "
            "Export the model with a fixed height and width."
        )
    return sizes
