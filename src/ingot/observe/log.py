"""The observation log: one row per request in SQLite, at a cost the request does not feel."""

import logging
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Self

from ingot.ledger.database import open_database, transaction
from ingot.observe.observation import Observation

log = logging.getLogger(__name__)

_NAMES = tuple(f.name for f in fields(Observation))
_ROW = attrgetter(*_NAMES)
_TYPES = {str: "TEXT NOT NULL", float: "REAL NOT NULL", int: "INTEGER NOT NULL"} | {
    bool: "INTEGER NOT NULL",
    str | None: "TEXT",
    float | None: "REAL",
}
_TABLE = (
    "CREATE TABLE IF NOT EXISTS observations (id INTEGER PRIMARY KEY, "
    + ", ".join(f"{f.name} {_TYPES[f.type]}" for f in fields(Observation))  # type: ignore[index] # the map holds every type that Observation uses
    + ")"
)
_INDEX = "CREATE INDEX IF NOT EXISTS observations_by_time ON observations (endpoint, time)"
_INSERT = (
    f"INSERT INTO observations ({', '.join(_NAMES)}) VALUES ({', '.join('?' for _ in _NAMES)})"  # noqa: S608 # names of our own fields
)


@dataclass(frozen=True, slots=True)
class Summary:
    """What an endpoint did.

    Attributes:
        endpoint: Its name.
        requests: How many requests were recorded.
        by_status: Requests by HTTP status.
        p50_ms: Median latency, nearest rank; None without requests.
        p95_ms: 95th percentile of latency, nearest rank; None without requests.
    """

    endpoint: str
    requests: int
    by_status: dict[int, int]
    p50_ms: float | None
    p95_ms: float | None


class ObservationLog:
    """Observations of one file: recorded by requests, written by one thread in batches.

    Losing the process loses what was recorded since the last flush; a full queue loses the
    observation and counts it in `dropped`. A request never waits for the disk.
    """

    def __init__(self, path: Path, *, capacity: int = 10_000, flush_s: float = 0.25) -> None:
        """Open or make the log.

        Args:
            path: SQLite file.
            capacity: Most observations that wait for the disk.
            flush_s: Most seconds between recording and committing, up to 0.5.

        Raises:
            ValueError: `capacity` or `flush_s` is out of range.
            LedgerError: The file is not a SQLite database.
        """
        if capacity < 1 or not 0 < flush_s <= 0.5:
            raise ValueError(
                "An observation log needs capacity >= 1 and 0 < flush_s <= 0.5; got "
                f"{capacity} and {flush_s}. Leave them out to get values that fit most endpoints."
            )
        self.path = path
        self._capacity, self._flush_s = capacity, flush_s
        self._pending: list[Observation] = []
        self._dropped = 0
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        # NORMAL: a killed process loses nothing committed, and each batch saves an fsync.
        self._db = open_database(path, synchronous="NORMAL", shared=True)
        self._db.execute(_TABLE)
        self._db.execute(_INDEX)
        self._thread = threading.Thread(target=self._write, name="ingot-observe", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """Observations that were not kept: the queue was full, closed, or the row not storable."""
        return self._dropped

    def record(self, observation: Observation) -> None:
        """Put an observation on the queue; never waits for the disk and never raises."""
        with self._lock:
            if len(self._pending) >= self._capacity or self._stop.is_set():
                self._dropped += 1
            else:
                self._pending.append(observation)

    def flush(self) -> None:
        """Commit everything recorded so far."""
        with self._write_lock:
            with self._lock:
                batch, self._pending = self._pending, []
            if not batch:
                return
            rows = [_ROW(observation) for observation in batch]
            try:
                self._insert(rows)
            except sqlite3.OperationalError as error:  # a full disk, say: no row of it would fit
                with self._lock:
                    self._dropped += len(rows)
                log.warning("%d observations were not stored: %s", len(rows), error)
            except (sqlite3.Error, ValueError, OverflowError):
                self._insert_singly(rows)

    def close(self) -> None:
        """Commit everything recorded so far and close the file; a second call does nothing."""
        with self._lock:
            if self._stop.is_set():
                return
            self._stop.set()
        self._thread.join()
        self.flush()
        self._db.close()

    def read(
        self, *, since: float | None = None, endpoint: str | None = None
    ) -> Iterator[Observation]:
        """Yield observations in order of arrival, everything recorded before the first included.

        Args:
            since: UTC seconds since 1970; earlier ones are left out.
            endpoint: Only those of this endpoint.
        """
        if not self._stop.is_set():
            self.flush()
        query = (
            f"SELECT {', '.join(_NAMES)} FROM observations "  # noqa: S608 # names of our own fields
            "WHERE time >= ? AND (? IS NULL OR endpoint = ?) ORDER BY time, id"
        )
        start = -math.inf if since is None else since
        with closing(open_database(self.path, synchronous="NORMAL", shared=True)) as reader:
            for row in reader.execute(query, (start, endpoint, endpoint)):
                values = dict(zip(_NAMES, row, strict=True))
                yield Observation(**values | {"deferred": bool(values["deferred"])})

    def summary(self, endpoint: str) -> Summary:
        """Return counts by status and latency percentiles of an endpoint."""
        rows = [(o.status, o.latency_ms) for o in self.read(endpoint=endpoint)]
        latencies = sorted(latency for _, latency in rows)
        return Summary(
            endpoint,
            len(rows),
            dict(sorted(Counter(status for status, _ in rows).items())),
            _nearest_rank(latencies, 50),
            _nearest_rank(latencies, 95),
        )

    def _write(self) -> None:
        while not self._stop.wait(self._flush_s):
            self.flush()

    def _insert(self, rows: Sequence[tuple[object, ...]]) -> None:
        with transaction(self._db):
            self._db.executemany(_INSERT, rows)

    def _insert_singly(self, rows: Sequence[tuple[object, ...]]) -> None:
        for row in rows:
            try:
                self._insert([row])
            except (sqlite3.Error, ValueError, OverflowError) as error:
                with self._lock:
                    self._dropped += 1
                log.warning("An observation was not stored: %s", error)


def _nearest_rank(ascending: Sequence[float], percent: int) -> float | None:
    """Return the smallest value that at least `percent` per cent of the values do not exceed."""
    if not ascending:
        return None
    return ascending[-(-percent * len(ascending) // 100) - 1]
