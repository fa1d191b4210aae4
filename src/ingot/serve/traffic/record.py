"""What was decided about the traffic of a name, by the canary or by hand, on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ingot.core.digest import Json
from ingot.serve.decision_log import DecisionTable

_COLUMNS = {
    "time": "REAL", "action": "TEXT", "who": "TEXT", "reason": "TEXT", "weights": "TEXT",
    "plan": "TEXT", "canary": "TEXT", "state": "TEXT", "memory": "TEXT", "judgements": "TEXT",
}  # fmt: skip
_JSON = ("weights", "memory", "judgements")


# Any: parsed JSON, written by `Recorded` itself
@dataclass(frozen=True, slots=True)
class Recorded:
    """One decision.

    Attributes:
        time: UTC seconds since 1970.
        action: `start`, `next`, `done`, `stay`, `roll back` or `weights`.
        who: Name of the caller who decided; `canary` for the rule, empty if nobody had to say.
        reason: Why.
        weights: Share of each version from then on, by number.
        plan: Digest of the plan.
        canary: Digest of the new version; empty without one.
        state: `split`, `running`, `done`, `rolled back` or `by hand`.
        memory: What the rule remembers.
        judgements: Claims with their intervals.
        row: Its number in the record, ascending; 0 before it is written.
    """

    time: float
    action: str
    who: str
    reason: str
    weights: dict[str, float]
    plan: str
    canary: str
    state: str
    memory: dict[str, Any]
    judgements: list[dict[str, Any]]
    row: int = 0

    def to_json(self) -> dict[str, Json]:
        """Return what is shown to people."""
        shown = asdict(self)
        for name in ("plan", "memory", "row"):
            del shown[name]
        return shown


class TrafficRecord:
    """Decisions about traffic in a SQLite file, none of which is ever deleted.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        # FULL: a version that was rolled back must not come back after a power loss
        self._table = DecisionTable(path, "traffic", _COLUMNS, synchronous="FULL")

    def add(self, name: str, row: Recorded) -> int:
        """Write one decision and return its number, 0 where the disk did not take it."""
        values = asdict(row)
        return self._table.add(
            name, *(json.dumps(values[c]) if c in _JSON else values[c] for c in _COLUMNS)
        )

    def read(self, name: str, *, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """Return the newest decisions behind a row, in order of time."""
        return [_row(values) for values in self._table.read(name, after=after, limit=limit)]

    def last(self, name: str, *, plan: str, canary: str) -> Recorded | None:
        """Return the newest decision about a canary, or about a plan without one."""
        column, value = ("canary", canary) if canary else ("plan", plan)
        found = self._table.last(name, column, value)
        return None if found is None else _row(found)

    def close(self) -> None:
        """Close the file."""
        self._table.close()


def _row(values: tuple[Any, ...]) -> Recorded:
    named = dict(zip(("row", *_COLUMNS), values, strict=True))
    return Recorded(**named | {column: json.loads(named[column]) for column in _JSON})
