"""What happened over time: windows of requests, and what else a server counts about itself."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ingot.observe.stats import KEEP_S, Window
from ingot.serve.metrics import Metrics

LOOK_S = 2.0
_KEPT = int(KEEP_S / LOOK_S)
_SAME_S = 0.002  # times are rounded to a millisecond on their way to a browser and back
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Level:
    """Workers of one version at a time.

    Attributes:
        time: UTC seconds since 1970.
        workers_ready: Workers that can answer.
        restarts: Workers started since the start in place of one that ended.
    """

    time: float
    workers_ready: int
    restarts: int


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


class StatsSource:
    """Where pages get their figures: a server's `Stats`, and its other counts at every look.

    May be used by several threads. An arm is that of a traffic split; None means all of a version's
    requests. Nothing of it is on the path of a request. A window that is not over yet counts in
    `over` and is none of `windows`.

    Args:
        metrics: Where the counts are.
        clock: UTC seconds since 1970.
    """

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._clock, self._lock = metrics, clock, threading.Lock()
        self._totals: dict[Key, Totals] = _read(metrics)
        self._levels: dict[Key, deque[Level]] = {}

    def look(self) -> None:
        """Read what is not in the windows; called every `LOOK_S` seconds."""
        now, totals = self._clock(), _read(self._metrics)
        with self._lock:
            self._totals = totals
            for key, one in totals.items():
                levels = self._levels.setdefault(key, deque(maxlen=_KEPT))
                levels.append(Level(now, one.workers_ready, one.restarts))

    def windows(
        self, model: str, version: str, *, since: float = 0.0, arm: str | None = None
    ) -> list[Window]:
        """Return the windows that ended after a time and are over, the oldest first."""
        found = self._metrics.stats.windows(since, model=model, version=version, arm=arm)
        # the last one is not over yet
        return [one for one in found[:-1] if one.end > since + _SAME_S]

    def over(self, model: str, version: str, seconds: float, *, arm: str | None = None) -> Window:
        """Return one window over the last seconds, the one that is not over yet with it."""
        return self._metrics.stats.over(seconds, model=model, version=version, arm=arm)

    def levels(self, model: str, version: str) -> list[Level]:
        """Return the workers of the last hour, the oldest first."""
        with self._lock:
            return list(self._levels.get((model, version), ()))

    def totals(self, model: str, version: str) -> Totals:
        """Return what was counted since the start, as it was at the last look."""
        with self._lock:
            return self._totals.get((model, version), Totals())


@dataclass(slots=True)
class _Counts:
    statuses: dict[int, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)  # cumulative, by upper bound
    reasons: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)

    def totals(self) -> Totals:
        return Totals(
            sum(self.statuses.values()), self.statuses, _apart(self.rows), self.reasons,
            int(self.gauges.get("ingot_workers_ready", 0)),
            int(self.gauges.get("ingot_worker_restarts_total", 0)),
        )  # fmt: skip


def _read(metrics: Metrics) -> dict[Key, Totals]:
    found: dict[Key, _Counts] = {}
    for name, labels, value in metrics.samples():
        counts = found.setdefault((labels.get("model", ""), labels.get("version", "")), _Counts())
        if name == "ingot_requests_total":
            counts.statuses[int(labels["status"])] = int(value)
        elif name == "ingot_batch_rows_bucket":
            counts.rows[labels["le"].removesuffix(".0")] = int(value)
        elif name == "ingot_batches_total":
            counts.reasons[labels["reason"]] = int(value)
        else:
            counts.gauges[name] = value
    return {key: counts.totals() for key, counts in found.items()}


def _apart(below: Mapping[str, int]) -> dict[str, int]:
    """Return a histogram's counts in each bucket from those up to each bound."""
    ordered = sorted(below.items(), key=lambda pair: float(pair[0]))
    before = [0, *(count for _, count in ordered)]
    return {bound: n - m for (bound, n), m in zip(ordered, before[:-1], strict=True)}
