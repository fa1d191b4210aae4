"""What follows the blocks: a last norm, a pool, dense layers, division by the length."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._blocks import CURVES
from ingot.models.transformer._functions import ACTIVATIONS
from ingot.models.transformer._norms import Norm
from ingot.models.transformer._pieces import Dense
from ingot.models.transformer._probes import SCALES, SUMS, Probes, Sizes, Values, mapped
from ingot.models.transformer.refusal import NotRecognized
from ingot.models.transformer.spec import Activation, Pool

_POOLS: tuple[Pool, ...] = ("tokens", "mean", "first", "last")
_ENDS = (
    SCALES
    | CURVES
    | {"Abs", "Clip", "GatherElements", "GatherND", "LpNormalization", "Max", "ReduceL2"}
    | {"ReduceMean", "ReduceSum", "Sqrt"}
)


@dataclass(slots=True)
class Tail:
    """What follows the blocks.

    Attributes:
        facts: Fields of the spec.
        tensors: Weights by name.
        norms: The norms, for what all must agree on.
    """

    facts: dict[str, Any] = field(default_factory=dict)  # fields of the spec are of many types
    tensors: dict[str, Array] = field(default_factory=dict)
    norms: list[Norm] = field(default_factory=list)


def pooled(value: Array, size: Sizes, pool: Pool) -> Array:
    """Return what leaves the body, of `(batch, length, width)` whose padding is at the end."""
    if pool == "tokens":
        return value
    real = size.real()
    found: Array = (value * real[..., None]).sum(1) / real.sum(1, keepdims=True)
    if pool != "mean":
        found = value[np.arange(size.batch), 0 if pool == "first" else real.sum(1) - 1]
    return found


def normalized(value: Array) -> Array:
    """Divide by the Euclidean length."""
    found: Array = value / np.sqrt((value**2).sum(-1, keepdims=True))
    return found


class TailReader:
    """Follows the answer from the last block to the output."""

    def __init__(self, probes: Probes, stream: Values) -> None:
        """Take what leaves the last block."""
        self._probes, self._values, self._tail = probes, stream, Tail()

    def read(self, *, norm_first: bool) -> Tail:
        """Read everything up to the output.

        Raises:
            NotRecognized: The output is not what the pieces known here make of the stream.
        """
        self._final_norm(norm_first=norm_first)
        self._pool()
        head: list[Activation] = []
        while not self._is_output():
            if head and isinstance(self._probes.unused()[0], Norm):
                self._head_norm(len(head) - 1)
            else:
                head.append(self._dense(len(head)))
        self._tail.facts |= {"head": tuple(head)}
        return self._tail

    def _final_norm(self, *, norm_first: bool) -> None:
        unused = self._probes.unused()
        is_norm = bool(unused) and isinstance(unused[0], Norm)
        if not is_norm or not self._probes.same(unused[0].inputs[0], self._values):
            return
        if norm_first:
            self._norm("final_norm")
            self._tail.facts["final_norm"] = True

    def _pool(self) -> None:
        probes, unused = self._probes, self._probes.unused()
        name = unused[0].inputs[0] if unused else self._output
        tries = {
            pool: [pooled(v, s, pool) for v, s in zip(self._values, probes.sizes, strict=True)]
            for pool in _POOLS
        }
        for pool, values in tries.items():
            plain = probes.same(name, values)
            if plain or (not unused and probes.same(name, [normalized(v) for v in values])):
                self._values = values
                self._tail.facts |= {"pool": pool}
                break
        else:
            raise NotRecognized(
                f"{probes.label(name)} is neither the tokens nor their mean over what is no "
                "padding, their first nor their last"
            )
        if unused and isinstance(unused[0], Norm):
            probes.explain(name, _ENDS, "pool")
            self._norm("pool_norm")
            self._tail.facts["pool_norm"] = True

    def _is_output(self) -> bool:
        """Whether what was reached is the answer, perhaps divided by its length."""
        if self._probes.unused():
            return False
        plain = self._probes.same(self._output, self._values)
        scaled = not plain and self._probes.same(self._output, mapped(normalized, self._values))
        if not plain and not scaled:
            raise NotRecognized(
                f"{self._probes.label(self._output)} does not give the answer of the last layer"
            )
        self._probes.explain(self._output, _ENDS, "output")
        self._tail.facts["normalize"] = scaled
        return True

    @property
    def _output(self) -> str:
        return self._probes.graph.outputs[0]

    def _dense(self, index: int) -> Activation:
        probes, piece = self._probes, self._probes.unused()[0]
        if not isinstance(piece, Dense) or not probes.same(piece.inputs[0], self._values):
            raise NotRecognized(
                f"head: {piece.nodes[0].label} does not read what was computed last"
            )
        probes.explain(piece.inputs[0], _ENDS, "head")
        probes.take(piece)
        self._tail.tensors |= piece.named(f"head.{index}")
        values, unused = probes[piece.output], probes.unused()
        name = unused[0].inputs[0] if unused else self._output
        for activation, curve in ACTIVATIONS.items():
            made = mapped(curve, values)
            if probes.same(name, made) or (
                not unused and probes.same(name, mapped(normalized, made))
            ):
                self._values = made
                probes.explain(name, _ENDS, "head")
                return activation
        region = probes.region(name)
        label = region[0].label if region else probes.label(name)
        raise NotRecognized(f"head: the activation after layer {index}, {label}, is not known")

    def _head_norm(self, index: int) -> None:
        if "head_norm" in self._tail.facts:
            raise NotRecognized(f"head: {self._probes.unused()[0].nodes[0].label} is a second norm")
        self._norm("head.norm")
        self._tail.facts["head_norm"] = index

    def _norm(self, name: str) -> None:
        piece = self._probes.unused()[0]
        assert isinstance(piece, Norm)
        if not self._probes.same(piece.inputs[0], self._values):
            raise NotRecognized(f"{piece.nodes[0].label} does not read what was computed last")
        self._probes.explain(piece.inputs[0], SUMS | CURVES, name)
        self._probes.take(piece)
        self._tail.tensors |= piece.named(name)
        self._tail.norms.append(piece)
        values = self._probes[piece.output]
        shaped = [v.reshape(old.shape) for v, old in zip(values, self._values, strict=True)]
        self._values = shaped
