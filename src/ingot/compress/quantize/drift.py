"""Whether calibration data look like what the model will see: ranges of activations compared."""

from dataclasses import dataclass

import numpy as np

from ingot.compress.quantize.calibrate import calibrate
from ingot.compress.quantize.observers import Range, make_observer
from ingot.compress.quantize.placement import place
from ingot.compress.quantize.prepare import prepare
from ingot.core.errors import RecipeError
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Split
from ingot.models.model import Model
from ingot.models.onnx_format import read_onnx

ROWS = 64
LEAST_OVERLAP = 0.6  # two samples of one distribution overlap by 0.8 and more
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Drift:
    """How ranges on other data compare with those of calibration.

    Attributes:
        overlap: By tensor that is quantized: length of what both ranges share over the length of
            what either covers; 1 where they are equal, 0 where they do not touch.
    """

    overlap: dict[str, float]

    @property
    def median(self) -> float:
        """Median overlap over the tensors."""
        return float(np.median(list(self.overlap.values())))

    @property
    def warning(self) -> str:
        """A sentence if the data differ, naming the tensors that differ most; else nothing."""
        if self.median >= LEAST_OVERLAP:
            return ""
        worst = sorted(self.overlap, key=lambda name: self.overlap[name])[:_NAMED]
        shown = ", ".join(f"{name} ({self.overlap[name]:.0%})" for name in worst)
        return (
            "Calibration data must look like the data that is judged; their ranges of activations "
            f"overlap by {self.median:.0%} only (median over {len(self.overlap)} tensors), least "
            f"at {shown}. Calibrate on rows of the same source, prepared in the same way."
        )


def range_drift(
    model: Model, calibration: Split, other: Split, *, progress: Progress = SILENT
) -> Drift:
    """Compare the ranges (99.99 % percentiles) of what would be quantized, on 64 rows of each.

    Raises:
        RecipeError: Nothing in the network can be quantized, or a tensor is not finite.
        DataError: The rows do not fit the model.
    """
    graph = prepare(read_onnx(model.onnx_path))
    tensors = place(graph).observed
    if not tensors:
        raise RecipeError(
            "A network must have something to quantize for its ranges to matter; got none. "
            "Check it with: ingot inspect MODEL."
        )
    found: list[dict[str, Range]] = []
    for split in (calibration, other):
        some = split.take(range(min(ROWS, len(split))))
        ranges = calibrate(
            graph.proto,
            some,
            tensors,
            make=lambda: make_observer("percentile"),
            progress=progress,
        )
        found.append(ranges)
    before, after = found
    return Drift({name: _overlap(before[name], after[name]) for name in before})


def _overlap(a: Range, b: Range) -> float:
    both = min(a[1], b[1]) - max(a[0], b[0])
    either = max(a[1], b[1]) - min(a[0], b[0])
    return float(max(both, 0.0) / either) if either > 0 else 1.0
