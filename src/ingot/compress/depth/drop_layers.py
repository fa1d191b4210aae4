"""Drop whole layers: those whose absence changes the answers least."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from ingot.compress.method import Method
from ingot.compress.quantize.calibrate import unpadded_batches
from ingot.compress.quantize.prepare import prepare
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Array, Data, Split
from ingot.models.blocks import Block, drop_blocks, find_blocks
from ingot.models.feeds import feeds_for
from ingot.models.network import Form, Network, OnnxNetwork
from ingot.models.store import read_signature

ROWS = 64


@dataclass(frozen=True)
class DropLayers(Method):
    """Keep a share of the repeated blocks of a network and let the rest pass their input on.

    Blocks (transformer layers, residual blocks) are found by structure. They are dropped one after
    the other: each time the one without which the outputs change least on the calibration data.
    Recover with `Distill` afterwards: most of what is lost comes back in minutes.

    Attributes:
        keep: Share of the blocks that stay, between 0 and 1; at least one of each run stays.
        kept: Indices of the blocks that stay, from 0; chosen by measurement if empty.

    References:
        Sajjad et al., On the Effect of Dropping Layers of Pre-trained Transformer Models, 2023.
        arXiv:2004.03844
    """

    keep: float = 0.67
    kept: tuple[int, ...] = ()

    form: ClassVar[Form] = "onnx"
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        if not 0 < self.keep < 1:
            raise RecipeError(f"keep must be between 0 and 1; got {self.keep}. Try 0.67.")
        if len(set(self.kept)) < len(self.kept) or any(i < 0 for i in self.kept):
            raise RecipeError(
                f"kept must hold indices from 0, each once; got {list(self.kept)}. "
                "Leave it out to have them chosen by measurement."
            )

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with fewer blocks.

        Raises:
            RecipeError: The graph has no repeated blocks, or `kept` does not fit them.
        """
        assert isinstance(net, OnnxNetwork)
        prepare(net.proto)
        blocks = find_blocks(net.proto)
        if len(blocks) < 2:
            raise RecipeError(
                "A model must have repeated blocks to drop some; got a graph in which no block "
                "repeats. Leave this method out of the recipe."
            )
        if self.kept:
            return OnnxNetwork(drop_blocks(net.proto, self._all_but_kept(blocks)))
        split = data.split("calibration")
        trial = _Trial(net.proto, split.take(range(min(ROWS, len(split)))))
        most = len(blocks) - round(self.keep * len(blocks))
        dropped = trial.drop_greedily(blocks, max(1, most), run)
        return OnnxNetwork(drop_blocks(net.proto, dropped))

    def _all_but_kept(self, blocks: Sequence[Block]) -> list[Block]:
        if max(self.kept) >= len(blocks):
            raise RecipeError(
                f"kept must name blocks of the model, 0 to {len(blocks) - 1}; got "
                f"{max(self.kept)}. Leave it out to have them chosen by measurement."
            )
        return [block for i, block in enumerate(blocks) if i not in self.kept]


@dataclass(slots=True)
class _Trial:
    """Answers of the graph with and without blocks, on the same rows."""

    proto: onnx.ModelProto
    split: Split

    def drop_greedily(self, blocks: Sequence[Block], most: int, run: Run) -> list[Block]:
        truth, dropped = self.answers(()), list[Block]()
        index = {block.end: i for i, block in enumerate(blocks)}
        for done in range(most):
            run.progress.step("choosing layers to drop", done, most)
            left = [b for b in blocks if b not in dropped]
            free = [b for b in left if sum(o.run == b.run for o in left) > 1]
            errors = [(self.error(truth, [*dropped, b]), i) for i, b in enumerate(free)]
            if not errors or not np.isfinite(min(errors)[0]):
                break
            error, best = min(errors)
            dropped.append(free[best])
            run.log(f"block {index[free[best].end]}", dropped="yes", output_error=error)
        run.progress.step("layers chosen", most, most)
        return dropped

    def error(self, truth: Sequence[Array], dropped: Sequence[Block]) -> float:
        """Return the mean over outputs of |y - y'|^2 / |y|^2; infinite if shapes differ."""
        answers = self.answers(dropped)
        if [a.shape for a in answers] != [t.shape for t in truth]:
            return float("inf")
        pairs = zip(truth, answers, strict=True)
        found = [float(np.sum((t - a) ** 2) / max(np.sum(t**2), 1e-30)) for t, a in pairs]
        return float(np.mean(found)) if np.all(np.isfinite(found)) else float("inf")

    def answers(self, dropped: Sequence[Block]) -> list[Array]:
        """Return every float output of the graph without these blocks, flat, batch by batch."""
        import onnxruntime

        small = drop_blocks(self.proto, dropped)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(
                small.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            signature, found = read_signature(small), list[Array]()
            for feeds in unpadded_batches(self.split):
                outputs = session.run(None, feeds_for(signature, feeds))
                found += [o.astype(np.float64).ravel() for o in outputs if o.dtype.kind == "f"]
        except (RuntimeError, ValueError):  # without this block the shapes no longer fit
            return []
        return found
