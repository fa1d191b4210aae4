"""An ONNX graph run by torch, so that any model can be trained, whoever made it and in whatever."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from ingot.core.errors import ModelError
from ingot.models._torch_ops import OPERATORS, Attributes

Tensors = dict[str, torch.Tensor]
SQRT_HALF = 0.5**0.5


class TorchGraph:
    """A float ONNX graph whose constants are torch tensors that can take gradients.

    Normalization layers use the statistics stored in the graph: nothing behaves as in training.

    Attributes:
        weights: Constant tensors by name; float ones may be given `requires_grad`.
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        """Read the graph; later changes to `proto` are not seen.

        Raises:
            ModelError: The graph uses an operator that has no torch form; all of them are named.
        """
        graph = proto.graph
        self.weights: Tensors = {w.name: tensor_of(w) for w in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in self.weights]
        self.outputs = [o.name for o in graph.output]
        self._steps = _fuse_gelu([_Step(node) for node in graph.node], self.weights)
        missing = sorted({s.operator for s in self._steps} - OPERATORS.keys())
        if missing:
            raise ModelError(
                "Training needs operators that torch can differentiate; the graph also has "
                f"{', '.join(missing)}. Use methods that need no training on it."
            )

    def trainable(self, names: Iterable[str]) -> list[torch.Tensor]:
        """Let these weights take gradients, all others not; return them."""
        chosen = set(names)
        for name, weight in self.weights.items():
            if weight.is_floating_point():
                weight.requires_grad_(name in chosen)
        return [self.weights[name] for name in sorted(chosen)]

    def float_weights(self, least_rank: int = 1) -> list[str]:
        """Return the names of float constants of at least this rank that some step reads."""
        read = {name for step in self._steps for name in step.inputs}
        return [
            name
            for name, weight in self.weights.items()
            if name in read and weight.is_floating_point() and weight.ndim >= least_rank
        ]

    def run(
        self,
        feeds: Mapping[str, np.ndarray[Any, Any] | torch.Tensor],
        want: Sequence[str] = (),
        *,
        replaced: Mapping[str, torch.Tensor] | None = None,
    ) -> Tensors:
        """Compute tensors by name.

        Args:
            feeds: Values of the graph's inputs, or of any inner tensors from which `want` follows.
            want: Names of tensors; the graph's outputs if not given.
            replaced: Tensors that stand in for constants, e.g. quantized weights.

        Raises:
            ModelError: A step fails or an input is missing; it is named.
        """
        wanted = list(want) or self.outputs
        values: dict[str, Any] = {**self.weights, **(replaced or {})}
        values |= {k: torch.as_tensor(v) for k, v in feeds.items()}
        steps = self._needed(wanted, values.keys())
        left = Counter(name for step in steps for name in step.inputs)
        keep = {*wanted, *self.weights}
        for step in steps:
            step.run(values)
            for name in step.inputs:
                left[name] -= 1
                if not left[name] and name not in keep:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def write_back(self, proto: onnx.ModelProto, names: Collection[str]) -> None:
        """Store these weights as they are now in the graph they came from."""
        for tensor in proto.graph.initializer:
            if tensor.name in names:
                value = self.weights[tensor.name].detach().float().numpy()
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    def _needed(self, wanted: Sequence[str], known: Collection[str]) -> "list[_Step]":
        need, steps = set(wanted) - set(known), []
        for step in reversed(self._steps):
            if not need.isdisjoint(step.outputs):
                steps.append(step)
                need |= {name for name in step.inputs if name and name not in known}
        missing = sorted(need - {name for step in steps for name in step.outputs})
        if missing:
            raise ModelError(
                f"Every tensor that an answer follows from must be given; {missing[0]!r} is not. "
                f"Feed it: the graph's inputs are {', '.join(self.inputs)}."
            )
        return steps[::-1]


def tensor_of(tensor: onnx.TensorProto) -> torch.Tensor:
    """Return an ONNX tensor as a torch tensor of its own memory."""
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


class _Step:
    """One node, its attributes read once."""

    __slots__ = ("attributes", "inputs", "name", "operator", "outputs")

    def __init__(self, node: onnx.NodeProto) -> None:
        self.operator, self.name = node.op_type, node.name
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.attributes: Attributes = {a.name: _attribute(a) for a in node.attribute}
        if self.operator == "Split":
            self.attributes.setdefault("num_outputs", len(self.outputs))

    def run(self, values: dict[str, Any]) -> None:
        inputs = [values[name] if name else None for name in self.inputs]
        try:
            result = OPERATORS[self.operator](self.attributes, inputs)
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as error:
            shapes = [tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)]
            raise ModelError(
                f"Step {self.name!r} ({self.operator}) must run in torch; got inputs of shapes "
                f"{shapes}: {error}. Check the inputs, or use methods that need no training."
            ) from error
        several = isinstance(result, list | tuple)
        values.update(zip(self.outputs, result if several else [result], strict=False))


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return tensor_of(value) if isinstance(value, onnx.TensorProto) else value


def _fuse_gelu(steps: list[_Step], weights: Tensors) -> list[_Step]:
    """Replace x / sqrt(2) -> erf -> + 1 -> * x, * 0.5 by one step: a third of the memory."""
    makers = {name: step for step in steps for name in step.outputs}
    readers: dict[str, list[_Step]] = {}
    for step in steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
    dropped: set[int] = set()
    for erf in [s for s in steps if s.operator == "Erf"]:
        inner = makers.get(erf.inputs[0])
        chain = [inner, erf] if inner else []
        name = erf.outputs[0]
        while chain and len(chain) < 5 and len(readers.get(name, ())) == 1:
            chain.append(readers[name][0])
            name = chain[-1].outputs[0]
        if [s.operator for s in chain][1:] != ["Erf", "Add", "Mul", "Mul"] or inner is None:
            continue
        if inner.operator not in ("Div", "Mul") or not _is_gelu(chain, weights):
            continue
        last = chain[-1]
        assert last is not None
        last.operator, last.inputs, last.attributes = "Gelu", [inner.inputs[0]], {}
        dropped |= {id(s) for s in chain[1:-1]}
        if len(readers[inner.outputs[0]]) == 1:
            dropped.add(id(inner))
    return [s for s in steps if id(s) not in dropped]


def _is_gelu(chain: list[_Step], weights: Tensors) -> bool:
    inner, _, plus, first, second = chain
    x = inner.inputs[0]

    def constant(step: _Step) -> float | None:
        found = [weights[n] for n in step.inputs if n in weights and weights[n].numel() == 1]
        return float(found[0]) if found else None

    factor = constant(inner)
    scaled = (
        factor is not None
        and abs((1 / factor if inner.operator == "Div" else factor) - SQRT_HALF) < 1e-4
    )
    halves = sorted([constant(first) or 0.0, constant(second) or 0.0])
    return (
        scaled
        and constant(plus) == 1.0
        and halves == [0.0, 0.5]
        and (x in first.inputs or x in second.inputs)
    )
