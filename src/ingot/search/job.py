"""A search as asked for: everything that decides its result, besides the trials and the machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from ingot.compress.recipe import Factory
from ingot.core.digest import Json, digest_json
from ingot.core.goals import Goal
from ingot.data.data import Data
from ingot.models.model import Model
from ingot.search.trial import Trial

Shape = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class Job:
    """What to search for.

    Attributes:
        model: The float model.
        data: Examples to calibrate on and to judge by.
        claims: What a candidate must keep.
        goal: What to be best at among those that keep the claims.
        shapes: (batch, sequence) at which latency is measured; the first one counts.
        split: Split that quality is judged on.
        seed: Every random choice.
        factory: Builds the torch network of `model`, if there is one.
        minutes: Training that may be spent to win back what dropped layers lose; 0 drops none.
        threads: Threads per call; 0 leaves them to the search.
    """

    model: Model
    data: Data
    claims: tuple[str, ...]
    goal: Goal = "latency"
    shapes: tuple[Shape, ...] = ((1, None),)
    split: str = "test"
    seed: int = 0
    factory: Factory | None = None
    minutes: float = 0.0
    threads: int = 0

    def digest(self, trials: Sequence[Trial], machine: str) -> str:
        """Digest of the whole job: the same one goes on where it stopped."""
        shapes: list[Json] = [list(shape) for shape in self.shapes]
        return digest_json({
            "model": self.model.digest,
            "data": self.data.digest,
            "claims": list(self.claims),
            "shapes": shapes,
            "split": self.split,
            "seed": self.seed,
            "trials": [trial.digest for trial in trials],
            "machine": machine,
            "minutes": self.minutes,
            "threads": self.threads,
        })  # fmt: skip
