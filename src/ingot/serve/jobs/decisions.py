"""The record of scaling: every decision and every death of an instance, with its reason."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ingot.core.digest import Json
from ingot.ledger.database import open_database, transaction
from ingot.serve.jobs.job import StoreError
from ingot.twin.policy import Decision

log = logging.getLogger(__name__)

_TABLE = """CREATE TABLE IF NOT EXISTS decisions (id INTEGER PRIMARY KEY, endpoint TEXT NOT NULL,
    time REAL NOT NULL, action TEXT NOT NULL, before INTEGER NOT NULL, instances INTEGER NOT NULL,
    backlog INTEGER NOT NULL, reason TEXT NOT NULL)"""
_INDEX = "CREATE INDEX IF NOT EXISTS decisions_by_endpoint ON decisions (endpoint, id)"
_INSERT = (
    "INSERT INTO decisions (endpoint, time, action, before, instances, backlog, reason)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_KEPT = 200_000  # two days of a decision a second


@dataclass(frozen=True, slots=True)
class Recorded:
    """One row of the record.

    Attributes:
        id: Grows with time.
        time: UTC seconds since 1970.
        action: `wake`, `out`, `in`, `hold`; or `died` for an instance that ended by itself.
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
        self._clock, self._lock, self._is_idle = clock, threading.Lock(), False
        self._db = open_database(path, synchronous="NORMAL", shared=True)
        try:
            with _readable(path):
                self._db.execute(_TABLE)
                self._db.execute(_INDEX)
        except StoreError:
            self._db.close()
            raise
        self._path = path

    def record(self, endpoint: str, decision: Decision) -> None:
        """Write one decision."""
        seen = decision.seen
        idle = decision.action == "hold" and not (seen.backlog or decision.instances)
        if idle and self._is_idle:
            return
        self._is_idle = idle
        self._write(
            endpoint, decision.action, seen.instances, decision.instances, seen.backlog,
            decision.reason,
        )  # fmt: skip

    def died(self, endpoint: str, *, before: int, backlog: int, reason: str) -> None:
        """Write that an instance ended by itself."""
        self._write(endpoint, "died", before, before - 1, backlog, reason)

    def read(self, endpoint: str, *, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """Return the newest rows above an id, in order of time.

        Raises:
            StoreError: They cannot be read.
        """
        with self._lock, _readable(self._path):
            rows = self._db.execute(
                "SELECT id, time, action, before, instances, backlog, reason FROM decisions"
                " WHERE endpoint = ? AND id > ? ORDER BY id DESC LIMIT ?",
                (endpoint, after, limit),
            ).fetchall()
        return [Recorded(*row) for row in reversed(rows)]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _write(self, endpoint: str, *values: object) -> None:
        # scaling must go on when its record cannot be written: a full disk, a closed file
        try:
            with self._lock, transaction(self._db):
                cursor = self._db.execute(_INSERT, (endpoint, self._clock(), *values))
                last = cursor.lastrowid or 0
                if last % 1000 == 0:
                    self._db.execute("DELETE FROM decisions WHERE id <= ?", (last - _KEPT,))
        except sqlite3.Error as error:
            log.error("a scaling decision was not recorded: %s", error)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"The record of scaling must be a whole SQLite file; {path.name!r} gives {error}. No "
            "job is in it: move it away, and a new one is made at the next start."
        ) from error
