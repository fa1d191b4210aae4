"""The record of scaling: every decision and every death of an instance, with its reason."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ingot.core.digest import Json
from ingot.serve.decision_log import DecisionTable
from ingot.serve.jobs.job import StoreError
from ingot.twin.policy import Decision

_COLUMNS = {
    "time": "REAL", "action": "TEXT", "before": "INTEGER", "instances": "INTEGER",
    "backlog": "INTEGER", "reason": "TEXT",
}  # fmt: skip
_KEPT = 200_000  # two days of a decision a second


@dataclass(frozen=True, slots=True)
class Recorded:
    """One row of the record.

    Attributes:
        id: Grows with time.
        time: UTC seconds since 1970.
        action: `wake`, `out`, `in`, `hold`; `start` for the first instance of a server, or `died`
            for one that ended by itself.
        before: Instances before.
        instances: Instances wanted.
        backlog: Jobs waiting or being processed.
        reason: Why.
    """

    id: int
    time: float
    action: str
    before: int
    instances: int
    backlog: int
    reason: str

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return asdict(self)


class DecisionLog:
    """Decisions of endpoints in a SQLite file. May be used by several threads.

    An endpoint that holds at zero with no backlog is written once for the whole stretch.

    Args:
        path: The file.
        clock: UTC seconds since 1970.

    Raises:
        StoreError: The file is damaged.
        LedgerError: It is no SQLite file.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._is_idle, self._path = clock, False, path
        with _readable(path):
            self._table = DecisionTable(path, "decisions", _COLUMNS, kept=_KEPT)

    def record(self, endpoint: str, decision: Decision) -> None:
        """Write one decision."""
        seen = decision.seen
        idle = decision.action == "hold" and not (seen.backlog or decision.instances)
        if idle and self._is_idle:
            return
        self._is_idle = idle
        self._table.add(
            endpoint, self._clock(), decision.action, seen.instances, decision.instances,
            seen.backlog, decision.reason,
        )  # fmt: skip

    def started(self, endpoint: str, *, backlog: int) -> None:
        """Write that a server starts with one instance, whatever the policy says."""
        reason = "one instance proves that the model answers"
        self._table.add(endpoint, self._clock(), "start", 0, 1, backlog, reason)

    def died(self, endpoint: str, *, before: int, backlog: int, reason: str) -> None:
        """Write that an instance ended by itself."""
        self._table.add(endpoint, self._clock(), "died", before, before - 1, backlog, reason)

    def read(self, endpoint: str, *, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """Return the newest rows above an id, in order of time.

        Raises:
            StoreError: They cannot be read.
        """
        with _readable(self._path):
            rows = self._table.read(endpoint, after=after, limit=limit)
        return [Recorded(*row) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._table.close()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"The record of scaling must be a whole SQLite file; {str(path)!r} gives {error}. No "
            "job is in it: move it away, and a new one is made at the next start."
        ) from error
