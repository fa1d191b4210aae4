"""What an endpoint counts about itself, as Prometheus reads it."""

from collections.abc import Callable, Iterator
from typing import Any

from ingot.core.extras import need

_BUCKETS_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip


class Metrics:
    """Counts of one endpoint, in a registry of its own so that two endpoints never mix.

    Args:
        model: Name of the model, a label on every series.
        version: Its version number, a label on every series.
        in_flight: Says how many requests are being answered now.
        dropped: Says how many observations could not be kept.
    """

    def __init__(
        self,
        model: str,
        version: str,
        *,
        in_flight: Callable[[], int],
        dropped: Callable[[], int],
    ) -> None:
        prometheus = need("prometheus_client", extra="serve", what="Serving")
        self._registry = prometheus.CollectorRegistry()
        labels, values = ("model", "version"), (model, version)
        self._requests = prometheus.Counter(
            "ingot_requests", "Inference requests by HTTP status.", (*labels, "status"),
            registry=self._registry,
        )  # fmt: skip
        self._latency = prometheus.Histogram(
            "ingot_request_seconds", "From arrival to answer.", labels,
            registry=self._registry, buckets=_BUCKETS_S,
        ).labels(*values)  # fmt: skip
        prometheus.Gauge(
            "ingot_requests_in_flight", "Requests being answered now.", labels,
            registry=self._registry,
        ).labels(*values).set_function(in_flight)  # fmt: skip
        self._registry.register(_Dropped(labels, values, dropped))
        self._labels = values
        # looking a label set up costs more than counting, so each status is looked up once
        self._by_status: dict[int, Any] = {}  # prometheus_client is untyped here

    def count(self, status: int, seconds: float) -> None:
        """Count one request."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._requests.labels(*self._labels, str(status))
            self._by_status[status] = counter
        counter.inc()
        self._latency.observe(seconds)

    def text(self) -> bytes:
        """Return every series in Prometheus text format."""
        prometheus = need("prometheus_client", extra="serve", what="Serving")
        text: bytes = prometheus.generate_latest(self._registry)
        return text


class _Dropped:
    """Reads the log's own counter when Prometheus asks: nothing on the request's path."""

    def __init__(
        self, labels: tuple[str, ...], values: tuple[str, ...], dropped: Callable[[], int]
    ) -> None:
        self._labels, self._values, self._dropped = labels, values, dropped

    def collect(self) -> Iterator[Any]:  # prometheus_client is untyped here
        core = need("prometheus_client.core", extra="serve", what="Serving")
        family = core.CounterMetricFamily(
            "ingot_observations_dropped", "Observations that were not kept.", labels=self._labels
        )
        family.add_metric(self._values, self._dropped())
        yield family
