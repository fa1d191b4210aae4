"""Reading an observation log: all of it, a part, its end, or what it comes to."""

import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ingot.core.digest import Json
from ingot.core.errors import DataError
from ingot.observe.observation import Observation
from ingot.observe.table import ENDPOINTS, columns_of, has_table, observation_of, reading

_PIECE_ROWS = 1000
_LATE_S = 60.0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which observations are meant.

    Attributes:
        endpoint: Only those of this endpoint.
        version: Only those of the version whose digest begins so, with `sha256:` or without.
        arm: Only those of this arm.
        since: UTC seconds since 1970; earlier ones are left out.
        until: UTC seconds since 1970; this and later ones are left out.
    """

    endpoint: str | None = None
    version: str = ""
    arm: str | None = None
    since: float | None = None
    until: float | None = None

    def where(self) -> tuple[str, list[str | float]]:
        """Return the condition in SQL, and its values."""
        digest = self.version.removeprefix("sha256:")
        begin = "version >= ? AND version < ?"
        parts: list[tuple[str, list[str | float]]] = []
        if self.endpoint is not None:
            parts.append(("endpoint = ?", [self.endpoint]))
        if self.version:
            parts.append((begin, [f"sha256:{digest}", f"sha256:{digest}\uffff"]))
        if self.arm is not None:
            parts.append(("arm = ?", [self.arm]))
        if self.since is not None:
            parts.append(("time >= ?", [self.since]))
        if self.until is not None:
            parts.append(("time < ?", [self.until]))
        values = [value for _, found in parts for value in found]
        return " AND ".join(words for words, _ in parts) or "1", values


def need_log(path: Path) -> Path:
    """Return the path of a log that is there.

    Raises:
        DataError: It is not.
    """
    if not path.is_file():
        raise DataError(
            f"An observation log must be there to be read; {str(path)!r} is not. Serve something "
            "first, or name another with --log."
        )
    return path


def logged_endpoints(path: Path) -> list[str]:
    """Return the names of all endpoints that a log has observations of, sorted."""
    with reading(path) as db:
        if not has_table(db, "observations"):
            return []
        return [name for (name,) in db.execute(ENDPOINTS)]


def read_log(path: Path, selection: Selection | None = None) -> Iterator[Observation]:
    """Yield observations in order of time.

    Args:
        path: The log, which others may be writing.
        selection: Which; all if not given.

    Raises:
        LedgerError: The file is not a SQLite database.
    """
    with reading(path) as db:
        if not has_table(db, "observations"):
            return
        with closing(_find(db, selection, "ORDER BY time, id")) as rows:
            # closed, for a reader that stops early must not hold the log's old pages
            while piece := rows.fetchmany(_PIECE_ROWS):
                yield from map(_observed, piece)


def read_newest(
    path: Path, last: int, selection: Selection | None = None
) -> tuple[int, list[Observation]]:
    """Return the newest row's number and the newest observations, in order of arrival.

    Args:
        path: The log.
        last: At most so many.
        selection: Which; all if not given.

    Raises:
        LedgerError: The file is not a SQLite database.
    """
    with reading(path) as db:
        if not has_table(db, "observations"):
            return 0, []
        db.execute("BEGIN")  # both answers are of one moment
        (newest,) = db.execute("SELECT coalesce(max(id), 0) FROM observations").fetchone()
        rows = _find(db, selection, "ORDER BY id DESC LIMIT ?", last).fetchall()
        db.execute("COMMIT")
    return int(newest), [_observed(row) for row in reversed(rows)]


def read_after(
    path: Path, row: int, selection: Selection | None = None
) -> tuple[int, list[Observation]]:
    """Return the newest row's number and what came after another, in order of arrival.

    Args:
        path: The log.
        row: Number of that other one, as `read_newest` or the call before returned it.
        selection: Which; all if not given.
    """
    with reading(path) as db:
        if not has_table(db, "observations"):
            return row, []
        rows = _find(db, selection, "AND id > ? ORDER BY id", row).fetchall()
    return (int(rows[-1][-1]) if rows else row), [_observed(found) for found in rows]


def read_ended(
    path: Path, since: float, selection: Selection | None = None
) -> Iterator[Observation]:
    """Yield the observations that ended after a time, the newest first, and perhaps some before.

    Rows arrive in the order in which requests ended, but for what processes write late.

    Args:
        path: The log.
        since: UTC seconds since 1970.
        selection: Which; all if not given.
    """
    with reading(path) as db:
        if not has_table(db, "observations"):
            return
        with closing(_find(db, selection, "ORDER BY id DESC")) as rows:
            for row in map(_observed, rows):
                if row.time + row.latency_ms / 1e3 < since - _LATE_S:
                    return
                yield row


def _find(
    db: sqlite3.Connection, selection: Selection | None, rest: str, *more: float
) -> sqlite3.Cursor:
    """Return the rows of a selection: every field, then the row's number.

    Args:
        db: The log.
        selection: Which; all if not given.
        rest: Of the query, with `?` for each further value.
        more: Those values.
    """
    where, values = (selection or Selection()).where()
    fields = ", ".join(columns_of(db))
    query = f"SELECT {fields}, id FROM observations WHERE {where} {rest}"  # noqa: S608 # names of our own fields
    return db.execute(query, [*values, *more])


def _observed(row: tuple[Any, ...]) -> Observation:  # cells are of many types
    return observation_of(row[:-1])


@dataclass(frozen=True, slots=True)
class Summary:
    """What an endpoint did, as far as the log holds it.

    Requests, statuses and percentiles are estimates for all requests where the log's rules kept
    only some; see `ingot.observe.estimate`.

    Attributes:
        endpoint: Its name.
        requests: How many requests there were.
        by_status: Requests by HTTP status.
        p50_ms: Median latency, nearest rank; None without requests.
        p95_ms: 95th percentile of latency, nearest rank; None without requests.
        p99_ms: 99th percentile of latency, nearest rank; None without requests.
        version: Digest of the version; empty where it is about all of them.
        rows: Rows of the log behind it.
    """

    endpoint: str
    requests: float
    by_status: dict[int, float]
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    version: str = ""
    rows: int = 0

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "endpoint": self.endpoint,
            "version": self.version,
            "requests": self.requests,
            "rows": self.rows,
            "by_status": {str(status): n for status, n in self.by_status.items()},
            "p50_ms": self.p50_ms,
            "p95_ms": self.p95_ms,
            "p99_ms": self.p99_ms,
        }


@dataclass(slots=True)
class _Heap:
    """Latencies and weights of one summary: 16 bytes a row."""

    latency: "array[float]" = field(default_factory=lambda: array("d"))
    weight: "array[float]" = field(default_factory=lambda: array("d"))
    by_status: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))

    def summary(self, endpoint: str, version: str) -> Summary:
        weights = np.asarray(self.weight)
        order = np.argsort(np.asarray(self.latency), kind="stable")
        latency, reached = np.asarray(self.latency)[order], np.cumsum(weights[order])
        p50, p95, p99 = (_nearest_rank(latency, reached, q) for q in (0.50, 0.95, 0.99))
        counts = {status: _tidy(n) for status, n in sorted(self.by_status.items())}
        total = _tidy(float(reached[-1])) if len(reached) else 0
        return Summary(endpoint, total, counts, p50, p95, p99, version, len(latency))


def summarize(
    path: Path, selection: Selection | None = None, *, per_version: bool = True
) -> list[Summary]:
    """Return one summary per endpoint and version, sorted by both.

    Args:
        path: The log.
        selection: Which observations; all if not given.
        per_version: Whether versions are told apart.

    Raises:
        LedgerError: The file is not a SQLite database.
    """
    where, values = (selection or Selection()).where()
    heaps: dict[tuple[str, str], _Heap] = {}
    with reading(path) as db:
        if not has_table(db, "observations"):
            return []
        inclusion = next(name for name in columns_of(db) if name.endswith("inclusion"))
        version = "version" if per_version else "''"
        rows = db.execute(
            f"SELECT endpoint, {version}, status, latency_ms, {inclusion} FROM observations"  # noqa: S608 # as above
            f" WHERE {where}",
            values,
        )
        for endpoint, digest, status, latency, kept in rows:
            heap = heaps.setdefault((endpoint, digest), _Heap())
            heap.latency.append(latency)
            heap.weight.append(1 / kept)
            heap.by_status[status] += 1 / kept
    return [heap.summary(*name) for name, heap in sorted(heaps.items())]


def count_lost(path: Path, selection: Selection | None = None) -> int:
    """Return how many observations were lost, by whole hours, of all endpoints together.

    Args:
        path: The log.
        selection: Its times are used.
    """
    since = selection.since if selection is not None else None
    until = selection.until if selection is not None else None
    with reading(path) as db:
        return _lost(db, since, until) if has_table(db, "losses") else 0


def _lost(db: sqlite3.Connection, since: float | None, until: float | None) -> int:
    first = -1 if since is None else int(since // 3600)
    last = 2**40 if until is None else int(until // 3600)
    query = "SELECT coalesce(sum(n), 0) FROM losses WHERE hour BETWEEN ? AND ?"
    return int(db.execute(query, (first, last)).fetchone()[0])


def _nearest_rank(
    ascending: np.ndarray, reached: np.ndarray, fraction: float
) -> float | None:  # of floats
    """Return the smallest value at which the weights so far reach `fraction` of all of them."""
    if not len(ascending):
        return None
    wanted = fraction * float(reached[-1]) * (1 - 1e-12)  # sums of weights are rounded
    return float(ascending[min(int(np.searchsorted(reached, wanted)), len(ascending) - 1)])


def _tidy(n: float) -> float:
    """Return a count as a whole number where it is one."""
    return int(n) if float(n).is_integer() else round(n, 2)
