"""Whether two answers to one request say the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ingot.core.digest import Json
from ingot.data.data import Array
from ingot.serve.client import read_tensors
from ingot.serve.traffic.ticket import Exchange


@dataclass(slots=True)
class OutputSum:
    """How often one output agreed.

    Attributes:
        compared: Answers in which both sides have it.
        agreed: Those in which they say the same.
        largest: Largest absolute difference of two values; infinite where only one is finite.
    """

    compared: int = 0
    agreed: int = 0
    largest: float = 0.0


@dataclass(slots=True)
class Sums:
    """What became of the copies of requests.

    Attributes:
        dropped: Not run, because the shadow was busy.
        failed: Run, and not comparable for a fault of our own; the log says why.
        statuses: Those that ran, by the statuses of the answer given and of the shadow's.
        compared: Those that both answered.
        agreed: Those of them in which every output agreed.
        outputs: By output.
    """

    dropped: int = 0
    failed: int = 0
    statuses: dict[tuple[int, int], int] = field(default_factory=dict)
    compared: int = 0
    agreed: int = 0
    outputs: dict[str, OutputSum] = field(default_factory=dict)

    def add(self, given: Mapping[str, Array], other: Mapping[str, Array], tolerance: float) -> None:
        """Compare two answers; outputs that were not asked for are left out."""
        found = {name: match(array, other[name], tolerance) for name, array in given.items()}
        for name, (agrees, difference) in found.items():
            total = self.outputs.setdefault(name, OutputSum())
            total.compared += 1
            total.agreed += agrees
            total.largest = max(total.largest, difference)
        self.compared += 1
        self.agreed += all(agrees for agrees, _ in found.values())

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form; a difference without bound is null."""
        return {
            "dropped": self.dropped, "failed": self.failed,
            "compared": self.compared, "agreed": self.agreed,
            "statuses": {f"{a}/{b}": n for (a, b), n in sorted(self.statuses.copy().items())},
            "outputs": {
                name: {
                    "compared": one.compared, "agreed": one.agreed,
                    "largest_difference": one.largest if np.isfinite(one.largest) else None,
                }
                for name, one in self.outputs.copy().items()
            },
        }  # fmt: skip


def match(given: Array, other: Array, tolerance: float) -> tuple[bool, float]:
    """Return whether two outputs agree, and the largest absolute difference of their values.

    Scores (floats whose last axis has two or more values) agree if the largest is at the same
    place in every row. Other floats agree within the tolerance. Everything else must be equal.

    Args:
        given: Of the answer given.
        other: Of the shadow.
        tolerance: Share of the largest magnitude in `given`.

    Examples:
        >>> match(np.array([[0.5, 0.25]]), np.array([[0.75, 0.5]]), 0.01)
        (True, 0.25)
    """
    if given.shape != other.shape:
        return False, float("inf")
    if given.dtype.kind != "f":
        apart = np.abs(given.astype(np.float64) - other.astype(np.float64))
        return bool((given == other).all()), float(apart.max(initial=0.0))
    a, b = given.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    largest = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
    if a.ndim and a.shape[-1] >= 2:
        return bool((a.argmax(-1) == b.argmax(-1)).all()), largest
    limit = tolerance * float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    return largest <= limit, largest


def read_answer(exchange: Exchange) -> dict[str, Array]:
    """Return the arrays of an answer that was given."""
    size = exchange.json_bytes
    head = exchange.answer if size is None else exchange.answer[:size]
    tail = b"" if size is None else exchange.answer[size:]
    return read_tensors(json.loads(head)["outputs"], tail)
