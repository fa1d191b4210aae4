"""How an endpoint is doing now: requests, errors and latency quantiles in windows of time.

Quantiles come from DDSketch (Masson, Rim and Lee, DDSketch: A Fast and Fully-Mergeable Quantile
Sketch with Relative-Error Guarantees, PVLDB 12(12), 2019): a quantile is within `ACCURACY` of the
exact one, relatively, and sketches of several windows merge to that of all their requests.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ingot.core.digest import Json
from ingot.core.extras import need

ACCURACY = 0.01
WIDTH_S, KEEP_S = 10.0, 3600.0
_FIRST_FAILURE = 500


class Key(NamedTuple):
    """Of whom figures are kept.

    Attributes:
        model: Name.
        version: Number, as a text.
        arm: Traffic arm, `main` when there is no split.
    """

    model: str
    version: str
    arm: str = "main"


@dataclass(frozen=True, slots=True)
class Window:
    """Figures of a time.

    Attributes:
        start: UTC seconds since 1970.
        seconds: How long it is; the newest one is not over yet.
        requests: How many requests ended in it.
        errors: How many of them failed by the server's fault: statuses from 500 up.
        by_status: Requests by HTTP status.
        p50_ms: Median latency in milliseconds; None without requests.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
    """

    start: float
    seconds: float
    requests: float
    errors: float
    by_status: dict[int, float]
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @property
    def end(self) -> float:
        """UTC seconds since 1970."""
        return self.start + self.seconds

    @property
    def rate_per_s(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def error_share(self) -> float:
        """Share of the requests that are errors; 0 without any."""
        return self.errors / self.requests if self.requests else 0.0

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "start": round(self.start, 3),
            "seconds": round(self.seconds, 3),
            "requests": self.requests,
            "errors": self.errors,
            "by_status": {str(status): n for status, n in sorted(self.by_status.items())},
            "rate_per_s": round(self.rate_per_s, 6),
            "p50_ms": self.p50_ms,
            "p95_ms": self.p95_ms,
            "p99_ms": self.p99_ms,
        }


@dataclass(slots=True)
class _Bucket:
    sketch: Any  # ddsketch is untyped
    by_status: dict[int, float] = field(default_factory=dict)
    quantiles: tuple[float | None, ...] | None = None  # once it is not written to any more


class Stats:
    """Figures of every model, version and arm of a server. May be used by several threads.

    Requests are counted in windows of `width_s`, kept for `keep_s` and merged when read.

    Args:
        width_s: Seconds of a window.
        keep_s: Seconds that windows are kept.
        clock: Seconds that never run backwards; they say which window is meant.
        wall: UTC seconds since 1970; they only say when a window was.
        begun: From when on, by the clock, requests are counted; now if not given.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
    """

    def __init__(
        self,
        *,
        width_s: float = WIDTH_S,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        begun: float | None = None,
    ) -> None:
        sketches = need("ddsketch", extra="serve", what="Keeping quantiles")
        self._sketch: Callable[[], Any] = lambda: sketches.DDSketch(ACCURACY)
        self._width, self._clock, self._wall = width_s, clock, wall
        self._most = max(1, round(keep_s / width_s))
        self._begun = clock() if begun is None else begun
        self._buckets: dict[Key, dict[int, _Bucket]] = {}
        self._lock = threading.Lock()

    @property
    def keep_s(self) -> float:
        """Seconds that windows are kept."""
        return self._most * self._width

    def add(
        self,
        key: Key,
        status: int,
        latency_ms: float,
        *,
        at: float | None = None,
        weight: float = 1,
    ) -> None:
        """Count one request.

        Args:
            key: Who answered.
            status: HTTP status.
            latency_ms: From arrival to answer.
            at: When it ended, by the clock, for a `Stats` that nobody reads meanwhile; now if not
                given.
            weight: How many requests it stands for.
        """
        index = int((self._clock() if at is None else at) // self._width)
        with self._lock:
            buckets = self._buckets.get(key)
            bucket = None if buckets is None else buckets.get(index)
            if bucket is None:
                bucket = self._begin(key, index)
            bucket.by_status[status] = bucket.by_status.get(status, 0) + weight
            bucket.sketch.add(latency_ms, weight)

    @property
    def keys(self) -> list[Key]:
        """Of whom there are figures, sorted."""
        with self._lock:
            return sorted(self._buckets)

    def over(
        self,
        window_s: float,
        *,
        model: str | None = None,
        version: str | None = None,
        arm: str | None = None,
    ) -> Window:
        """Return the figures of the last seconds, in whole windows: up to one more than asked.

        Args:
            window_s: Seconds back from now; at most `keep_s` are there.
            model: Only of this model.
            version: Only of this version.
            arm: Only of this arm.
        """
        now = self._clock()
        first = self._first(now - window_s, now)
        start = max(first * self._width, self._begun)
        groups = self._snapshot(first, (model, version, arm))
        return self._window([one for group in groups.values() for one in group], start, now)

    def windows(
        self,
        since: float | None = None,
        *,
        model: str | None = None,
        version: str | None = None,
        arm: str | None = None,
    ) -> list[Window]:
        """Return every window from some time on, the oldest first, those without requests too.

        Args:
            since: UTC seconds since 1970; as long as there are any if not given.
            model: Only of this model.
            version: Only of this version.
            arm: Only of this arm.
        """
        now = self._clock()
        # UTC seconds are rounded to less than a microsecond: a window's own start must find it
        begin = self._begun if since is None else since - (self._wall() - now) + 1e-5
        first, last = self._first(begin, now), int(now // self._width)
        groups = self._snapshot(first, (model, version, arm))
        return [
            self._window(
                groups.get(index, []),
                max(index * self._width, self._begun),
                min((index + 1) * self._width, now),
            )
            for index in range(first, last + 1)
        ]

    def _first(self, begin: float, now: float) -> int:
        """Return the first window that is asked for and may be there."""
        oldest = int(now // self._width) - self._most + 1
        return max(int(max(begin, self._begun) // self._width), oldest)

    def _snapshot(self, first: int, wanted: tuple[str | None, ...]) -> dict[int, list[_Bucket]]:
        """Return the buckets of each window from the first on, none of which changes any more.

        Requests wait for the copies alone, which is why nothing is merged meanwhile.
        """
        found: dict[int, list[_Bucket]] = {}
        with self._lock:
            for key, buckets in self._buckets.items():
                if not all(want in {None, have} for want, have in zip(wanted, key, strict=True)):
                    continue
                newest = max(buckets)
                for index, bucket in buckets.items():
                    if index >= first:
                        is_open = index == newest  # older ones are not written to any more
                        found.setdefault(index, []).append(
                            self._merge([bucket]) if is_open else bucket
                        )
        return found

    def _merge(self, buckets: Iterable[_Bucket]) -> _Bucket:
        merged = _Bucket(self._sketch())
        for bucket in buckets:
            merged.sketch.merge(bucket.sketch)
            for status, n in bucket.by_status.items():
                merged.by_status[status] = merged.by_status.get(status, 0) + n
        return merged

    def _begin(self, key: Key, index: int) -> _Bucket:
        buckets = self._buckets.setdefault(key, {})
        bucket = buckets[index] = _Bucket(self._sketch())
        while len(buckets) > self._most:
            del buckets[min(buckets)]
        return bucket

    def _window(self, buckets: Sequence[_Bucket], start: float, end: float) -> Window:
        one = buckets[0] if len(buckets) == 1 else self._merge(buckets)
        if one.quantiles is None:
            one.quantiles = tuple(one.sketch.get_quantile_value(q) for q in (0.50, 0.95, 0.99))
        p50, p95, p99 = one.quantiles
        offset = self._wall() - self._clock()
        seconds = max(0.0, end - start)
        requests = sum(one.by_status.values())
        errors = sum(n for status, n in one.by_status.items() if status >= _FIRST_FAILURE)
        counts = dict(one.by_status)
        return Window(start + offset, seconds, requests, errors, counts, p50, p95, p99)
