"""Layer-by-layer distillation: each block, on its own, learns to live with its integers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx

from ingot.compress.distill._batches import length_sorted
from ingot.compress.distill.distill import trained_weights
from ingot.compress.method import Method
from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize.groups import Granularity, group_scales, limits_of, store_groups
from ingot.compress.quantize.placement import Plan, check_table_bits, place_weights
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.weights import (
    GROUPED_OPSET,
    fitting,
    grouped_layers,
    split_gemms,
    store_layers,
)
from ingot.compress.quantize.writer import write_qdq
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.core.extras import need
from ingot.data.data import Data, Split
from ingot.models.blocks import Block, block_graph, find_blocks
from ingot.models.feeds import feeds_for
from ingot.models.network import Form, Network, OnnxNetwork
from ingot.models.store import read_signature
from ingot.models.vocabulary import vocabulary_size

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]
SCALE_RATE = 10.0  # scales are learnt as logarithms: steps relative to the scale itself
EXAMPLES = 256


@dataclass(frozen=True)
class DistillLayers(Method):
    """Store weights in 4 or 8 bits, and train each block alone to answer as its original does.

    For block after block, activations enter both the original block and its quantized copy, and
    only the copy's weights, biases, norms and scales move, by the squared distance of the two
    answers, each channel over its variance. Nothing but one block and its copy is trained at a
    time, no labels are needed, and any text will do.

    Attributes:
        bits: 4 or 8.
        granularity: What shares a scale, as in `QuantizeWeights`.
        steps: Steps per block.
        rate: Largest learning rate of Adam; falls linearly to 0.
        rows: Rows per step.
        error_aware: Feed the copy what the quantized blocks before it answer; off, as in the paper,
            the original's activations.
        random_tokens: Learn from uniformly random token ids: for when no text may be used.
        embeddings: Bits of embedding tables: 8, 4, or 0 to leave them in float.

    References:
        Yao et al., ZeroQuant, 2022, section 3.3. arXiv:2206.01861
    """

    bits: int = 4
    granularity: str = "k:32"
    steps: int = 150
    rate: float = 1e-4
    rows: int = 16
    error_aware: bool = True
    random_tokens: bool = False
    embeddings: int = 8

    form: ClassVar[Form] = "onnx"
    needs: ClassVar[frozenset[str]] = frozenset({"training"})

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        limits_of(self.bits)
        Granularity.parse(self.granularity)
        check_table_bits(self.embeddings)
        for name in ("steps", "rate", "rows"):
            if not getattr(self, name) > 0:
                raise RecipeError(
                    f"{name} must be positive; got {getattr(self, name)}. Leave it out for default."
                )

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with integer weights.

        Raises:
            RecipeError: The graph has no repeated blocks, or is quantized already.
            ModelError: A block has an operator that cannot be trained.
        """
        need("torch", extra="compress", what="Distillation")
        assert isinstance(net, OnnxNetwork)
        graph = prepare(net.proto, opset=GROUPED_OPSET)
        blocks = find_blocks(graph.proto)
        if not blocks:
            raise RecipeError(
                "A model must have repeated blocks to be distilled block by block; got a graph in "
                "which no block repeats. Use QuantizeGroups instead."
            )
        plan = place_weights(graph, embeddings=bool(self.embeddings))
        work = _Work(self, graph, plan, run)
        work.distill(blocks, self._split(data, net.proto, run))
        plan = store_layers(graph, work.left(), self.bits, self.granularity, run=run)
        return OnnxNetwork(write_qdq(graph, plan, {}, table_bits=self.embeddings or 8, run=run))

    def _split(self, data: Data, proto: onnx.ModelProto, run: Run) -> Split:
        split = data.split("training")
        order = np.random.default_rng(run.seed).permutation(len(split))[:EXAMPLES]
        split = split.take(np.sort(order).tolist())
        if not self.random_tokens:
            return split
        ids, words = split.inputs.get("input_ids"), vocabulary_size(proto)
        if ids is None or not words:
            raise RecipeError(
                "random_tokens must go with a model that looks 'input_ids' up in a table; got "
                f"inputs {sorted(split.inputs)}. Leave it out."
            )
        fake = np.random.default_rng(run.seed).integers(0, words, ids.shape).astype(ids.dtype)
        return Split({**split.inputs, "input_ids": fake}, None, split.rows_per_example)


class _Work:
    """The graph that is quantized block by block, and what has been stored so far."""

    def __init__(self, method: DistillLayers, graph: Graph, plan: Plan, run: Run) -> None:
        self.method, self.graph, self.plan, self.run = method, graph, plan, run
        self.layers = set(grouped_layers(graph, plan))
        self.done: list[str] = []

    def left(self) -> Plan:
        """Return the plan without the layers that are stored already."""
        rest = {k: v for k, v in self.plan.weights.items() if k not in self.done}
        return Plan(rest, tables=self.plan.tables)

    def distill(self, blocks: Sequence[Block], split: Split) -> None:
        """Train and store every block. Hidden states go forward block by block."""
        parts = [block_graph(self.graph.proto, block) for block in blocks]
        batches = list(self._entering(blocks, parts, split))
        after = [dict(batch) for batch in batches] if self.method.error_aware else batches
        for i, (block, part) in enumerate(zip(blocks, parts, strict=True)):
            self.run.progress.step(f"distilling block {i}", i, len(blocks))
            pair = _Pair(self.method, block, part, self.layers)
            before, loss = pair.train(batches, after, self.run.seed)
            self.run.log(
                f"block {i}",
                loss_before=before,
                loss_after=loss,
                trained_bytes=float(pair.bytes),
            )
            for batch, own in zip(batches, after, strict=True):
                truth, answer = pair.answers(batch, own)
                batch[block.end] = truth
                if self.method.error_aware:
                    own[block.end] = answer
            self._store(pair)
        self.run.progress.step("blocks distilled", len(blocks), len(blocks))

    def _entering(
        self, blocks: Sequence[Block], parts: Sequence[onnx.ModelProto], split: Split
    ) -> "Iterator[Tensors]":
        """Give, per batch, what enters the first block and what comes from beside the path."""
        import torch

        from ingot.models.torch_graph import TorchGraph

        made = {block.end for block in blocks}
        names = sorted({i.name for p in parts for i in p.graph.input} - made)
        whole, signature = TorchGraph(self.graph.proto), read_signature(self.graph.proto)
        for feeds in length_sorted(split, self.method.rows, self.run.seed):
            with torch.no_grad():
                yield whole.run(feeds_for(signature, feeds), names)

    def _store(self, pair: "_Pair") -> None:
        names = [n for n in pair.names if n not in pair.scales]
        pair.student.write_back(self.graph.proto, names)
        self.graph.index()
        stored = []
        for layer, weight in pair.layers.items():
            integers, scale = pair.integers(weight)
            source = store_groups(self.graph, layer, integers, scale, self.method.bits)
            self.graph.by_name[layer].input[1] = source
            stored.append(layer)
        split_gemms(self.graph, stored)
        self.done += stored


class _Pair:
    """One block and its quantized copy."""

    def __init__(
        self, method: DistillLayers, block: Block, part: onnx.ModelProto, layers: set[str]
    ) -> None:
        import torch

        from ingot.models.torch_graph import TorchGraph

        self.method, self.block = method, block
        self.teacher, self.student = TorchGraph(part), TorchGraph(part)
        self.names = trained_weights(OnnxNetwork(part))
        self.layers = {n.name: n.input[1] for n in part.graph.node if n.name in layers}
        self.scales: dict[str, torch.Tensor] = {}
        self.shifts: dict[str, torch.Tensor] = {}
        for name in self.layers.values():
            weight = self.student.weights[name].T.numpy()
            parts = fitting(Granularity.parse(method.granularity), weight)
            scale = group_scales(weight, method.bits, parts)
            self.scales[name] = torch.from_numpy(np.ascontiguousarray(scale.T)).float()
            self.shifts[name] = torch.zeros(_group_shape(scale.T), requires_grad=True)

    @property
    def bytes(self) -> int:
        """Bytes of the block, its copy, and what Adam keeps for the copy."""
        copy = sum(self.student.weights[n].numel() * 4 for n in self.names)
        return int(4 * copy)

    def train(
        self, batches: "Sequence[Tensors]", own: "Sequence[Tensors]", seed: int
    ) -> tuple[float, float]:
        """Train the copy; return its relative squared error before and after."""
        import torch

        weights = self.student.trainable(self.names)
        rates = [
            {"params": weights, "lr": self.method.rate},
            {"params": list(self.shifts.values()), "lr": self.method.rate * SCALE_RATE},
        ]
        optimizer, order = torch.optim.Adam(rates), np.random.default_rng(seed)
        with torch.no_grad():
            truths = [self.teacher.run(b, [self.block.end])[self.block.end] for b in batches]
            matter = _matter(truths)
            before = self._error(own, truths, matter)
        kept = [w.detach().clone() for w in (*weights, *self.shifts.values())]
        for step in range(self.method.steps):
            i = int(order.integers(len(batches)))
            for group, first in zip(optimizer.param_groups, (1.0, SCALE_RATE), strict=True):
                group["lr"] = self.method.rate * first * (1 - step / self.method.steps)
            optimizer.zero_grad(set_to_none=True)
            ((self._answer(own[i]) - truths[i]).square() * matter).mean().backward()
            optimizer.step()
        with torch.no_grad():
            after = self._error(own, truths, matter)
            if after <= before:
                return before, after
            # Never hand over a copy that is worse than plain rounding, or one that is not a number.
            for weight, value in zip((*weights, *self.shifts.values()), kept, strict=True):
                weight.copy_(value)
        return before, before

    def answers(self, batch: "Tensors", own: "Tensors") -> "tuple[torch.Tensor, torch.Tensor]":
        """Return what the block and its copy answer."""
        import torch

        with torch.no_grad():
            truth = self.teacher.run(batch, [self.block.end])[self.block.end]
            return truth, self._answer(own) if self.method.error_aware else truth

    def integers(self, name: str) -> tuple[Any, Any]:
        """Return integers and scales of a weight, both `(rows, inputs)`."""
        import torch

        low, high = limits_of(self.method.bits)
        with torch.no_grad():
            scale = self._scale(name)
            q = torch.clamp(torch.round(self.student.weights[name] / scale), low, high)
        return q.T.numpy().astype(np.int8), np.ascontiguousarray(scale.T.numpy(), np.float64)

    def _scale(self, name: str) -> "torch.Tensor":
        return self.scales[name] * _spread(self.shifts[name].exp(), self.scales[name].shape)

    def _quantized(self, name: str) -> "torch.Tensor":
        """Return the weight on its grid; gradients pass straight through the rounding (LSQ)."""
        import torch

        low, high = limits_of(self.method.bits)
        scale = self._scale(name)
        steps = (self.student.weights[name] / scale).clamp(low, high)
        return (steps + (torch.round(steps) - steps).detach()) * scale

    def _answer(self, batch: "Tensors") -> "torch.Tensor":
        replaced: Mapping[str, torch.Tensor] = {n: self._quantized(n) for n in self.scales}
        return self.student.run(batch, [self.block.end], replaced=replaced)[self.block.end]

    def _error(
        self, own: "Sequence[Tensors]", truths: "Sequence[torch.Tensor]", matter: "torch.Tensor"
    ) -> float:
        """Return the mean over channels of the squared error over the channel's variance."""
        found = [
            (float(((self._answer(b) - t).square() * matter).mean()), len(t))
            for b, t in zip(own, truths, strict=True)
        ]
        return float(np.average([f for f, _ in found], weights=[n for _, n in found]))


def _matter(truths: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Return 1 / variance of each channel: a few outlier channels would else be all that counts."""
    import torch

    axis = 1 if truths[0].ndim == 4 else truths[0].ndim - 1
    rows = torch.cat([t.transpose(0, axis).flatten(1) for t in truths], dim=1)
    variance = rows.var(dim=1, correction=0)
    shape = [1] * truths[0].ndim
    shape[axis] = -1
    return (1 / variance.clamp_min(float(variance.mean()) * 1e-6 + 1e-30)).reshape(shape)


def _group_shape(scale: Any) -> tuple[int, int]:
    """Return how many groups there are along each axis of `(inputs, rows)`."""
    changes = [
        np.flatnonzero((np.diff(scale, axis=axis) != 0).any(axis=1 - axis)) + 1 for axis in (0, 1)
    ]
    widths = [
        int(np.gcd.reduce([scale.shape[axis], *c.tolist()])) for axis, c in enumerate(changes)
    ]
    return scale.shape[0] // widths[0], scale.shape[1] // widths[1]


def _spread(value: "torch.Tensor", shape: Sequence[int]) -> "torch.Tensor":
    """Repeat each group's value over the group."""
    for axis in (0, 1):
        value = value.repeat_interleave(shape[axis] // value.shape[axis], dim=axis)
    return value
