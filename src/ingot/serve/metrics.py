"""What a server counts about itself, as Prometheus reads it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ingot.core.extras import need

_BUCKETS_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LABELS = ("model", "version")
Kind = Literal["counter", "gauge"]


class Metrics:
    """Counts of one server, in a registry of its own so that two servers never mix."""

    def __init__(self) -> None:
        prometheus = need("prometheus_client", extra="serve", what="Serving")
        self._registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "ingot_requests", "Inference requests by HTTP status.", (*_LABELS, "status"),
            registry=self._registry,
        )  # fmt: skip
        self._latency = prometheus.Histogram(
            "ingot_request_seconds", "From arrival to answer.", _LABELS,
            registry=self._registry, buckets=_BUCKETS_S,
        )  # fmt: skip
        self._rows = prometheus.Histogram(
            "ingot_batch_rows", "Rows of each call of the engine.", _LABELS,
            registry=self._registry, buckets=_ROWS,
        )  # fmt: skip
        self._reasons = prometheus.Counter(
            "ingot_batches", "Calls of the engine by what began them.", (*_LABELS, "reason"),
            registry=self._registry,
        )  # fmt: skip
        self._live = _Live()
        self._registry.register(self._live)

    def series(self, model: str, version: str) -> "Series":
        """Return the counts of one model; its name and number are labels on each of them."""
        return Series((model, version), self._requests, self._latency, self._live)

    def count_batch(self, model: str, version: str, rows: int, *, reason: str) -> None:
        """Count one call that requests may have shared."""
        self._rows.labels(model, version).observe(rows)
        self._reasons.labels(model, version, reason).inc()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Give every number with its name and labels, as Prometheus would read it now."""
        for family in self._registry.collect():
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def text(self) -> bytes:
        """Return every series in Prometheus text format."""
        prometheus = need("prometheus_client", extra="serve", what="Serving")
        text: bytes = prometheus.generate_latest(self._registry)
        return text


class Series:
    """Counts of one model."""

    # prometheus_client is untyped here
    def __init__(self, values: tuple[str, str], requests: Any, latency: Any, live: "_Live") -> None:
        self._values, self._requests, self._live = values, requests, live
        self._latency = latency.labels(*values)
        # looking a label set up costs more than counting, so each status is looked up once
        self._by_status: dict[int, Any] = {}

    def count(self, status: int, seconds: float) -> None:
        """Count one request."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._requests.labels(*self._values, str(status))
            self._by_status[status] = counter
        counter.inc()
        self._latency.observe(seconds)

    def watch(self, name: str, words: str, read: Callable[[], float], *, kind: Kind) -> None:
        """Publish a number that is kept elsewhere; it is read when Prometheus asks.

        Args:
            name: Of the metric.
            words: Its help.
            read: Returns the number.
            kind: Whether it only ever grows.
        """
        family = self._live.families.setdefault(name, _Family(words, kind))
        family.readers[self._values] = read


@dataclass(slots=True)
class _Family:
    words: str
    kind: Kind
    readers: dict[tuple[str, str], Callable[[], float]] = field(default_factory=dict)


class _Live:
    """Reads counters of other objects when Prometheus asks: nothing on the request's path."""

    def __init__(self) -> None:
        self.families: dict[str, _Family] = {}

    def collect(self) -> Iterator[Any]:  # prometheus_client is untyped here
        core = need("prometheus_client.core", extra="serve", what="Serving")
        kinds = {"counter": core.CounterMetricFamily, "gauge": core.GaugeMetricFamily}
        for name, family in self.families.items():
            rows = kinds[family.kind](name, family.words, labels=_LABELS)
            for values, read in family.readers.items():
                rows.add_metric(values, read())
            yield rows
