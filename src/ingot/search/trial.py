"""Trial and Outcome: a recipe on an engine, and what came of it."""

from dataclasses import dataclass

from ingot.compress.recipe import Recipe
from ingot.core.digest import Json, digest_json
from ingot.evaluate.evidence import Evidence, Interval
from ingot.runtime.engine import EngineConfig


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing to try: a recipe, and the engine, precision and threads that run the result.

    Attributes:
        recipe: How the model is changed; empty for the float model as it is.
        config: How the result is run.
    """

    recipe: Recipe
    config: EngineConfig

    @property
    def is_float(self) -> bool:
        """Whether the model itself is unchanged."""
        return not self.recipe.methods

    @property
    def label(self) -> str:
        """Short text for progress and tables."""
        return f"{self.recipe.label} on {self.config.label}"

    @property
    def digest(self) -> str:
        """Equal trials have equal digests."""
        return digest_json({"recipe": self.recipe.to_json(), "config": self.config.to_json()})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: What was tried.
        model: Digest of the model that ran; empty if it could not be made.
        size_bytes: Bytes on disk of that model; 0 if it could not be made.
        latency: p50 in ms at the first shape, if it ran.
        throughput: Items per second at the last shape, if it ran.
        quality: The task's main metric on the judged split, if it ran.
        evidence: Measured against the float baseline; None for the baseline and for failures.
        passed: Whether every claim held; None if not judged.
        on_frontier: No other outcome is at least as good in size, latency and quality.
        reason: One sentence: why it failed, was left behind, or was kept.
        cost: Cold start in s, memory in bytes or energy in J per call, where that is the goal.
    """

    trial: Trial
    model: str = ""
    size_bytes: int = 0
    latency: Interval | None = None
    throughput: float = 0.0
    quality: Interval | None = None
    evidence: Evidence | None = None
    passed: bool | None = None
    on_frontier: bool = False
    reason: str = ""
    cost: Interval | None = None

    @property
    def ran(self) -> bool:
        """Whether there is anything to compare."""
        return self.latency is not None and self.quality is not None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form for `--json`."""
        return {
            "recipe": self.trial.recipe.to_json(),
            "label": self.trial.recipe.label,
            "config": self.trial.config.to_json(),
            "model": self.model,
            "size_bytes": self.size_bytes,
            "latency_ms": _interval(self.latency),
            "throughput": self.throughput,
            "quality": _interval(self.quality),
            "passed": self.passed,
            "on_frontier": self.on_frontier,
            "reason": self.reason,
            "cost": _interval(self.cost),
            "evidence": self.evidence.digest if self.evidence else None,
        }


def _interval(interval: Interval | None) -> list[Json] | None:
    return None if interval is None else [interval.value, interval.low, interval.high]
