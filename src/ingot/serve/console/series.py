"""What happened over time: windows of requests, made of the counts that a server keeps anyway."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from ingot.serve.metrics import Metrics

LOOK_S = 2.0
_KEPT = int(3600 / LOOK_S)
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Window:
    """What happened to one version in a stretch of time.

    Attributes:
        start: UTC seconds since 1970.
        seconds: How long it was.
        requests: Answers given.
        errors: Those of them that are the server's fault: 5xx.
        p50_ms: Median latency; None without a request. So are the next two.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        statuses: Answers by HTTP status.
        workers_ready: Workers that could answer at its end.
        restarts: Workers started in it in place of one that ended.
    """

    start: float
    seconds: float
    requests: int
    errors: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    statuses: Mapping[int, int] = field(default_factory=dict)
    workers_ready: int = 0
    restarts: int = 0

    @property
    def end(self) -> float:
        """UTC seconds since 1970."""
        return self.start + self.seconds

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0

    @property
    def error_share(self) -> float:
        """Share of the answers that are errors; 0 without any."""
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    """What was counted since the start.

    Attributes:
        requests: Answers given.
        statuses: Answers by HTTP status.
        rows: Calls of the engine by the most rows they may have had, `+Inf` for more than all.
        reasons: Calls of the engine by what began them.
        workers_ready: Workers that can answer.
        restarts: Workers started in place of one that ended.
    """

    requests: int = 0
    statuses: Mapping[int, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    workers_ready: int = 0
    restarts: int = 0


class Source(Protocol):
    """Where pages get their figures. May be used by several threads."""

    def windows(self, model: str, version: str, *, since: float = 0.0) -> Sequence[Window]:
        """Return the windows that ended after a time, the oldest first."""
        ...

    def over(self, model: str, version: str, seconds: float) -> Window:
        """Return one window over the last seconds."""
        ...

    def totals(self, model: str, version: str) -> Totals:
        """Return what was counted since the start."""
        ...


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was added to the counts of one version between two looks."""

    start: float
    seconds: float
    statuses: Mapping[int, int]
    bounds: tuple[float, ...]  # seconds, the last is infinite
    counts: tuple[int, ...]  # requests up to each bound and above the one before
    workers_ready: int
    restarts: int


@dataclass(slots=True)
class _Counts:
    statuses: dict[int, int] = field(default_factory=dict)
    below: dict[float, int] = field(default_factory=dict)  # cumulative, by upper bound
    rows: dict[str, int] = field(default_factory=dict)  # cumulative, by upper bound
    reasons: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)

    @property
    def workers_ready(self) -> int:
        return int(self.gauges.get("ingot_workers_ready", 0))

    @property
    def restarts(self) -> int:
        return int(self.gauges.get("ingot_worker_restarts_total", 0))


class MetricsSource:
    """A source that looks at a server's `Metrics` again and again and keeps the differences.

    Nothing of it is on the path of a request. Quantiles come from the histogram's buckets: they are
    right to within a bucket.

    Args:
        metrics: Where the counts are.
        clock: UTC seconds since 1970.
    """

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._clock, self._lock = metrics, clock, threading.Lock()
        self._before, self._looked = _read(metrics), clock()
        self._kept: dict[Key, deque[tuple[_Piece, Window]]] = {}

    def look(self) -> None:
        """Take the differences since the last look; called every `LOOK_S` seconds."""
        now, counts = self._clock(), _read(self._metrics)
        start, before = self._looked, self._before
        if now > start:  # a clock that was set back makes no window
            pieces = {
                key: _difference(start, now - start, before.get(key, _Counts()), after)
                for key, after in counts.items()
            }
            with self._lock:
                for key, piece in pieces.items():
                    kept = self._kept.setdefault(key, deque(maxlen=_KEPT))
                    kept.append((piece, _window([piece])))
        self._before, self._looked = counts, now

    def windows(self, model: str, version: str, *, since: float = 0.0) -> list[Window]:
        """Return the windows that ended after a time, the oldest first."""
        return [one for _, one in self._recent(model, version, since)]

    def over(self, model: str, version: str, seconds: float) -> Window:
        """Return one window over the last seconds, made of all that ended in them."""
        return _window([one for one, _ in self._recent(model, version, self._looked - seconds)])

    def totals(self, model: str, version: str) -> Totals:
        """Return what was counted since the start, as it was at the last look."""
        counts = self._before.get((model, version), _Counts())
        return Totals(
            sum(counts.statuses.values()), counts.statuses, _apart(counts.rows), counts.reasons,
            counts.workers_ready, counts.restarts,
        )  # fmt: skip

    def _recent(self, model: str, version: str, since: float) -> list[tuple[_Piece, Window]]:
        with self._lock:
            kept = self._kept.get((model, version), ())
            newest = list(takewhile(lambda pair: pair[1].end > since, reversed(kept)))
        return newest[::-1]


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """Return a quantile of a histogram, as if values were spread evenly in each bucket.

    Args:
        bounds: Upper bounds, growing; the last may be infinite, and then its lower bound is given.
        counts: Values in each bucket.
        q: Between 0 and 1.

    Returns:
        The quantile in the unit of the bounds; None without values.

    Examples:
        >>> quantile([1.0, 2.0, 4.0], [0, 10, 10], 0.75)
        3.0
    """
    rank, below, low = q * sum(counts), 0, 0.0
    if not rank:
        return None
    for bound, count in zip(bounds, counts, strict=True):
        if count and below + count >= rank:
            share = (rank - below) / count
            return low if bound == float("inf") else low + (bound - low) * share
        below, low = below + count, bound
    return low


def _read(metrics: Metrics) -> dict[Key, _Counts]:
    found: dict[Key, _Counts] = {}
    for name, labels, value in metrics.samples():
        counts = found.setdefault((labels.get("model", ""), labels.get("version", "")), _Counts())
        if name == "ingot_requests_total":
            counts.statuses[int(labels["status"])] = int(value)
        elif name == "ingot_request_seconds_bucket":
            counts.below[float(labels["le"])] = int(value)
        elif name == "ingot_batch_rows_bucket":
            counts.rows[labels["le"].removesuffix(".0")] = int(value)
        elif name == "ingot_batches_total":
            counts.reasons[labels["reason"]] = int(value)
        else:
            counts.gauges[name] = value
    return found


def _difference(start: float, seconds: float, before: _Counts, after: _Counts) -> _Piece:
    old = before.statuses
    statuses = {s: n - old.get(s, 0) for s, n in after.statuses.items() if n > old.get(s, 0)}
    bounds = tuple(sorted(after.below))
    grown = [after.below[bound] - before.below.get(bound, 0) for bound in bounds]
    counts = tuple(max(0, n - m) for n, m in zip(grown, [0, *grown[:-1]], strict=True))
    restarts = max(0, after.restarts - before.restarts)
    return _Piece(start, seconds, statuses, bounds, counts, after.workers_ready, restarts)


def _window(pieces: Sequence[_Piece]) -> Window:
    if not pieces:
        return Window(0.0, 0.0, 0, 0, None, None, None)
    statuses: dict[int, int] = {}
    for piece in pieces:
        for status, count in piece.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    last = pieces[-1]
    counts = [sum(column) for column in zip(*(piece.counts for piece in pieces), strict=True)]
    tops = [quantile(last.bounds, counts, q) for q in (0.5, 0.95, 0.99)]
    p50, p95, p99 = (None if top is None else round(top * 1e3, 4) for top in tops)
    return Window(
        pieces[0].start,
        sum(piece.seconds for piece in pieces),
        sum(statuses.values()),
        sum(count for status, count in statuses.items() if status >= 500),
        p50, p95, p99, statuses, last.workers_ready, sum(piece.restarts for piece in pieces),
    )  # fmt: skip


def _apart(below: Mapping[str, int]) -> dict[str, int]:
    """Return a histogram's counts in each bucket from those up to each bound."""
    ordered = sorted(below.items(), key=lambda pair: float(pair[0]))
    before = [0, *(count for _, count in ordered)]
    return {bound: n - m for (bound, n), m in zip(ordered, before[:-1], strict=True)}
