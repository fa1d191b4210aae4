"""What a search found, and which of it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ingot.compress.quantize.left_in_float import FloatNode
from ingot.core.digest import Json
from ingot.core.goals import Goal
from ingot.models.model import Model
from ingot.search.trial import Outcome

TIE = 1.02


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found.

    Attributes:
        outcomes: Everything that was tried, in the order it was tried.
        chosen: The best that keeps every claim; None if nothing does.
        model: The model of `chosen`; None if nothing was chosen.
        folder: Where model, evidence, recipe and report were written.
        summary: The outcome in a sentence.
        metric: Name of the quality metric.
        shape: Shape at which latency was measured, e.g. `batch 1 x 128`.
        notes: Sentences that explain the choice.
        left_in_float: Nodes of the chosen model that integers did not reach, each with the reason.
    """

    outcomes: tuple[Outcome, ...]
    chosen: Outcome | None
    model: Model | None
    folder: Path
    summary: str
    metric: str
    shape: str
    notes: tuple[str, ...] = ()
    left_in_float: tuple[FloatNode, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form for `--json`."""
        return {
            "summary": self.summary,
            "metric": self.metric,
            "shape": self.shape,
            "chosen": self.chosen.to_json() if self.chosen else None,
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
            "notes": list(self.notes),
            "left_in_float": [node.to_json() for node in self.left_in_float],
            "folder": str(self.folder),
        }


def choose_best(
    outcomes: Sequence[Outcome], goal: Goal
) -> tuple[tuple[Outcome, ...], Outcome | None]:
    """Return the outcomes, and the best that keeps every claim with its reason filled in.

    Candidates within two per cent of the best are a tie that a next run may turn round: among them
    the one with the higher quality is kept, then the smaller one, then the one tried first.
    """
    holding = [o for o in outcomes if o.passed and o.ran]
    if not holding:
        return tuple(outcomes), None
    limit = min(_cost(o, goal) for o in holding) * TIE
    best = min((o for o in holding if _cost(o, goal) <= limit), key=_preference)
    reason = f"kept: best {goal} of the {len(holding)} that hold every claim"
    found = best.reason.partition("; ")[2] if best.cost else ""  # what it costs, in words
    kept = replace(best, reason="; ".join(filter(None, (reason, found))))
    return tuple(kept if o is best else o for o in outcomes), kept


def _cost(outcome: Outcome, goal: Goal) -> float:
    assert outcome.latency is not None
    if outcome.cost is not None:
        return outcome.cost.value
    if goal == "size":
        return float(outcome.size_bytes)
    return 1 / max(outcome.throughput, 1e-9) if goal == "throughput" else outcome.latency.value


def _preference(outcome: Outcome) -> tuple[float, int]:
    assert outcome.quality is not None
    return -outcome.quality.value, outcome.size_bytes
