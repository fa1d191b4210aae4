"""Run: what a method is told about this one application, and where it writes down what it did."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ingot.core.progress import SILENT, Progress
from ingot.models.network import OnnxNetwork


@dataclass(slots=True)
class Run:
    """Seed, progress and log of one application of a recipe.

    Attributes:
        seed: Every random choice of a method comes from here.
        progress: Where long work reports.
        records: What methods logged, in order: (layer or step name, facts).
        original: Opens the float graph that the recipe started from, for methods that learn from
            it; set by the recipe.
    """

    seed: int = 0
    progress: Progress = SILENT
    records: list[tuple[str, dict[str, float | str]]] = field(default_factory=list)
    original: Callable[[], OnnxNetwork] | None = None

    def log(self, name: str, **facts: float | str) -> None:
        """Write down facts about one layer or step; they appear in the report."""
        self.records.append((name, facts))
