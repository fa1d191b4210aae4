"""Self-distillation: the compressed network learns to answer as the original does. No labels."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ingot.compress.distill._batches import Batch, length_sorted
from ingot.compress.distill._losses import Loss, make_loss
from ingot.compress.method import Method
from ingot.compress.quantize.prepare import prepare
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.core.extras import need
from ingot.data.data import Array, Data, Split
from ingot.models.feeds import feeds_for
from ingot.models.network import Form, Network, OnnxNetwork
from ingot.models.store import read_signature

if TYPE_CHECKING:
    from ingot.models.torch_graph import TorchGraph

HELD_OUT = 0.05  # share of the rows that only measure
MOST_HELD_OUT = 512
WARM_UP = 0.05
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Distill(Method):
    """Train the network on unlabelled rows until its outputs are those of the original.

    The teacher is the model that the recipe started from. Embedding tables stay as they are. A
    share of the rows is held out; if the loss on it does not fall, the weights stay unchanged.

    Attributes:
        minutes: Wall time after which training stops, whatever is left.
        epochs: Passes over the rows if time allows.
        rate: Largest learning rate of AdamW; it rises for 5 % of the steps and then falls to 0.
        rows: Rows per step.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015. arXiv:1503.02531
    """

    minutes: float = 5.0
    epochs: int = 6
    rate: float = 2e-4
    rows: int = 64

    form: ClassVar[Form] = "onnx"
    needs: ClassVar[frozenset[str]] = frozenset({"training"})

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        for name in ("minutes", "epochs", "rate", "rows"):
            value = getattr(self, name)
            if not value > 0:
                raise RecipeError(
                    f"{name} must be positive; got {value}. Leave it out for default."
                )

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the trained network.

        Raises:
            RecipeError: There is no original to learn from, or its outputs are not floats.
            ModelError: The graph has an operator that cannot be trained.
        """
        need("torch", extra="compress", what="Distillation")
        assert isinstance(net, OnnxNetwork)
        if run.original is None:
            raise RecipeError(
                "Distillation must know its teacher; got a run without one. "
                "Apply it through a Recipe."
            )
        from ingot.models.torch_graph import TorchGraph

        prepare(net.proto)
        student = TorchGraph(net.proto)
        names = trained_weights(net)
        trainer = Trainer(self, student, names, data, run, run.original())
        trainer.train()
        student.write_back(net.proto, names)
        return net


def trained_weights(net: OnnxNetwork) -> list[str]:
    """Return float constants that are learnt: those of layers and norms, not tables, not masks."""
    learnt: set[str] = set()
    floats = {w.name for w in net.proto.graph.initializer if w.data_type == 1 and len(w.dims)}
    for node in net.proto.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "LayerNormalization", "MatMul"):
            learnt |= floats.intersection(node.input[1:])
        elif node.op_type == "Add":  # the bias of a MatMul
            learnt |= {name for name in floats.intersection(node.input) if _is_bias(net, name)}
    return sorted(learnt)


def _is_bias(net: OnnxNetwork, name: str) -> bool:
    weight = next(w for w in net.proto.graph.initializer if w.name == name)
    return len(weight.dims) == 1 and weight.dims[0] > 1


@dataclass(slots=True)
class Trainer:
    """One training: a student graph, its teacher's answers, and a clock."""

    method: Distill
    student: "TorchGraph"
    names: Sequence[str]
    data: Data
    run: Run
    teacher: OnnxNetwork
    clock: Callable[[], float] = time.monotonic
    losses: list[float] = field(default_factory=list)

    def train(self) -> None:
        """Train until the time or the epochs are over; keep the best weights that were seen."""
        import torch

        split = self.data.split("training")
        batches, held = self._batches(split)
        loss_of = make_loss(self.data.task, self.student.outputs)
        weights = self.student.trainable(self.names)
        optimizer = torch.optim.AdamW(weights, lr=self.method.rate, weight_decay=0.01)
        best, kept = self._measure(held, loss_of), [w.detach().clone() for w in weights]
        self.run.log("before distillation", held_out_loss=best)
        begin, steps, epoch = self.clock(), 0, 0
        order = np.random.default_rng(self.run.seed)
        while epoch < self.method.epochs and self._spent(begin) < 1:
            for i in order.permutation(len(batches)):
                share = max(self._spent(begin), steps / (len(batches) * self.method.epochs))
                if share >= 1:
                    break
                self._step(batches[i], loss_of, optimizer, share)
                steps += 1
                self.run.progress.step("distilling", int(1000 * share), 1000)
            epoch += 1
            now = self._measure(held, loss_of)
            self.run.log(f"epoch {epoch}", held_out_loss=now, steps=float(steps))
            if now < best:
                best, kept = now, [w.detach().clone() for w in weights]
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
        self.run.progress.step("distilled", 1000, 1000)

    def _spent(self, begin: float) -> float:
        return (self.clock() - begin) / (60 * self.method.minutes)

    def _step(self, batch: Batch, loss_of: Loss, optimizer: Any, share: float) -> None:
        import torch

        rate = self.method.rate * min(share / WARM_UP, (1 - share) / (1 - WARM_UP), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = max(rate, 1e-7)
        optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch, loss_of)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], GRADIENT_NORM)
        optimizer.step()

    def _loss(self, batch: Batch, loss_of: Loss) -> Any:
        import torch

        from ingot.runtime.cpu import has_bf16

        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            answers = self.student.run(batch.feeds)
        return loss_of(answers, {n: torch.from_numpy(v) for n, v in batch.truth.items()})

    def _measure(self, batches: Sequence[Batch], loss_of: Loss) -> float:
        import torch

        with torch.no_grad():
            found = [(float(self._loss(b, loss_of)), b.rows) for b in batches]
        return float(np.average([f for f, _ in found], weights=[n for _, n in found]))

    def _batches(self, split: Split) -> tuple[list[Batch], list[Batch]]:
        order = np.random.default_rng(self.run.seed).permutation(len(split))
        kept = min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(split))))
        if len(split) <= kept:
            raise RecipeError(
                f"The training split must hold at least two examples; got {len(split)}. "
                "Distillation needs no labels: add unlabelled examples."
            )
        held = split.take(np.sort(order[:kept]).tolist())
        taught = split.take(np.sort(order[kept:]).tolist())
        return (
            list(self._answered(taught, "answers of the teacher")),
            list(self._answered(held, "answers of the teacher, held out")),
        )

    def _answered(self, split: Split, what: str) -> Iterator[Batch]:
        """Give batches with what the teacher answers to them."""
        import onnxruntime

        session = onnxruntime.InferenceSession(
            self.teacher.proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names, signature = self.student.outputs, read_signature(self.teacher.proto)
        parts = list(length_sorted(split, self.method.rows, self.run.seed))
        for done, feeds in enumerate(parts):
            named = feeds_for(signature, feeds)
            truth: dict[str, Array] = dict(zip(names, session.run(names, named), strict=True))
            self.run.progress.step(what, done + 1, len(parts))
            yield Batch(named, truth)
