"""What versions answered, counted as it happens in a bounded space."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ingot.evaluate.evidence import Interval
from ingot.runtime.quantiles import quantile_ranks

ANSWERED = 200
LATE = 504
# Not answered, and not through the caller's fault: the engine refused (422), too many waited (429),
# or the server failed. Every other refusal says nothing about a version and is not counted.
_FAULTS = frozenset({422, 429, *range(500, 600)})
_PER_E = 50  # latencies are told apart by 1 part in 50


@dataclass(frozen=True, slots=True)
class Counts:
    """What a version has answered since some moment.

    Attributes:
        requests: Requests that were answered or failed.
        errors: Those that failed.
        buckets: Answers, and those that came too late, by latency: `floor(50 ln ms)`.
    """

    requests: int = 0
    errors: int = 0
    buckets: Mapping[int, int] = field(default_factory=dict)

    @property
    def timed(self) -> int:
        """Requests that have a latency."""
        return sum(self.buckets.values())

    def latency(self, q: float, level: float) -> Interval:
        """Return a quantile of latency in ms; its ends are those of order statistics' buckets.

        Args:
            q: Which quantile, 0 to 1.
            level: Two-sided confidence.
        """
        n = self.timed
        first, last = quantile_ranks(n, q, level=level)
        value = self._edge(max(1, math.ceil(q * n)), 0.5)
        low = self._edge(first, 0.0) if first >= 1 else 0.0
        high = self._edge(last, 1.0) if last <= n else math.inf
        return Interval(value, low, high, level, "order-statistics", n)

    def _edge(self, rank: int, up: float) -> float:
        """Return how far up in its bucket the latency of a rank could be, in ms."""
        seen, bucket = 0, 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                break
        return math.exp((bucket + up) / _PER_E)


class Tally:
    """Counts that grow; read by one other thread while they do."""

    def __init__(self) -> None:
        self._requests = self._errors = 0
        self._buckets: dict[int, int] = {}

    def count(self, status: int, seconds: float) -> None:
        """Count one request.

        Args:
            status: HTTP status of the answer.
            seconds: From arrival to answer.
        """
        if status in {ANSWERED, LATE}:
            bucket = math.floor(math.log(max(seconds, 1e-9) * 1e3) * _PER_E)
            self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        if status == ANSWERED:
            self._requests += 1
        elif status in _FAULTS:
            self._requests += 1  # before the error, so that a reader never finds more errors
            self._errors += 1

    def counts(self) -> Counts:
        """Return what was counted so far."""
        errors, requests = self._errors, self._requests
        return Counts(requests, errors, self._buckets.copy())


@dataclass(frozen=True, slots=True)
class Seen:
    """What a canary is judged on: all that has happened since its step began.

    Attributes:
        time_s: Now, UTC seconds since 1970.
        canary: What the new version answered.
        baseline: What the main version beside it answered; None where it answers nothing any more.
        compared: Copies that the new version answered as a shadow of another.
        agreed: Those of them with the other's answer.
    """

    time_s: float
    canary: Counts
    baseline: Counts | None = None
    compared: int = 0
    agreed: int = 0
