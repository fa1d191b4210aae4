"""What a server counts about itself, as Prometheus reads it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ingot.core.extras import need
from ingot.observe.stats import Key, Stats

_BUCKETS_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LABELS = ("model", "version")
_QUANTILES_S = 300.0  # over which quantiles are published
Kind = Literal["counter", "gauge"]


class Metrics:
    """Counts of one server, in a registry of its own so that two servers never mix.

    Attributes:
        stats: Requests, errors and latency quantiles of the last hour, in windows.
    """

    def __init__(self) -> None:
        self.stats = Stats()
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
        self._more: dict[str, Any] = {}  # prometheus_client is untyped here
        self._live = _Live()
        self._registry.register(self._live)
        self._registry.register(_Quantiles(self.stats))

    def series(self, model: str, version: str) -> "Series":
        """Return the counts of one model; its name and number are labels on each of them."""
        return Series(Key(model, version), self)

    def count_batch(self, model: str, version: str, rows: int, *, reason: str) -> None:
        """Count one call that requests may have shared."""
        self._rows.labels(model, version).observe(rows)
        self._reasons.labels(model, version, reason).inc()

    # prometheus_client is untyped here
    def add(self, collector: Any) -> None:
        """Publish families that are made when Prometheus asks: `collector.collect()` gives them."""
        self._registry.register(collector)

    def histogram(self, name: str, words: str, buckets: Sequence[float]) -> Any:
        """Return a histogram with a model's name and number as labels; made by the first who asks.

        Args:
            name: Of the metric.
            words: Its help.
            buckets: Upper ends, ascending.
        """
        if name not in self._more:
            prometheus = need("prometheus_client", extra="serve", what="Serving")
            self._more[name] = prometheus.Histogram(
                name, words, _LABELS, registry=self._registry, buckets=tuple(buckets)
            )
        return self._more[name]

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Give requests by status, calls of the engine and what is watched, with their labels.

        Latencies are left out: `stats` has them, and to collect their quantiles takes long.
        """
        for family in (self._requests, self._rows, self._reasons, self._live):
            for one in family.collect():
                for sample in one.samples:
                    yield sample.name, sample.labels, sample.value

    def text(self) -> bytes:
        """Return every series in Prometheus text format."""
        prometheus = need("prometheus_client", extra="serve", what="Serving")
        text: bytes = prometheus.generate_latest(self._registry)
        return text


class Series:
    """Counts of one model.

    Args:
        key: Its name and number.
        metrics: What it is part of.
    """

    def __init__(self, key: Key, metrics: Metrics) -> None:
        self._key, self._values = key, (key.model, key.version)
        self._requests, self._live, self._stats = metrics._requests, metrics._live, metrics.stats
        self._latency = metrics._latency.labels(*self._values)
        # looking a label set up costs more than counting, so each status is looked up once
        self._by_status: dict[int, Any] = {}
        self._by_arm = {key.arm: key}

    def count(self, status: int, seconds: float, arm: str = "main") -> None:
        """Count one request.

        Args:
            status: HTTP status.
            seconds: From arrival to answer.
            arm: Of a traffic split; quantiles are kept for each.
        """
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._requests.labels(*self._values, str(status))
            self._by_status[status] = counter
        counter.inc()
        self._latency.observe(seconds)
        key = self._by_arm.get(arm)
        if key is None:
            key = self._by_arm[arm] = self._key._replace(arm=arm)
        self._stats.add(key, status, seconds * 1e3)

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


class _Quantiles:
    """Latency quantiles as gauges: Prometheus can neither make them from buckets nor merge them."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Any]:  # prometheus_client is untyped here
        core = need("prometheus_client.core", extra="serve", what="Serving")
        rows = core.GaugeMetricFamily(
            "ingot_request_quantile_seconds",
            "Latency quantiles of the last five minutes, each within 1 % of the exact one.",
            labels=(*Key._fields, "quantile"),
        )
        for key in self._stats.keys:
            found = self._stats.over(_QUANTILES_S, **key._asdict())
            for quantile, value in (
                ("0.5", found.p50_ms), ("0.95", found.p95_ms), ("0.99", found.p99_ms),
            ):  # fmt: skip
                if value is not None:
                    rows.add_metric((*key, quantile), value / 1e3)
        yield rows
