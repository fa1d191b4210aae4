"""Counts of an asynchronous endpoint as Prometheus reads them, for scalers and dashboards."""

from collections.abc import Callable, Iterator
from typing import Any

from ingot.core.extras import need
from ingot.serve.jobs.store import JobStore, backlog


class JobMetrics:
    """Gauges of one endpoint, read from the store when somebody asks and at no other time.

    Args:
        model: Name of the model, a label on every series.
        store: Where its jobs are.
        instances: Says how many instances run or are starting.
    """

    def __init__(self, model: str, store: JobStore, *, instances: Callable[[], int]) -> None:
        prometheus = need("prometheus_client", extra="serve", what="Serving")
        self._model, self._store, self._instances = model, store, instances
        self._registry = prometheus.CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[Any]:  # prometheus_client is untyped here
        """Give the series; called by prometheus_client."""
        core = need("prometheus_client.core", extra="serve", what="Serving")
        counts, instances = self._store.counts(self._model), self._instances()
        jobs = core.GaugeMetricFamily(
            "ingot_jobs", "Jobs by state, ended ones until they are forgotten.",
            labels=("model", "state"),
        )  # fmt: skip
        for state, n in counts.items():
            jobs.add_metric((self._model, state.value), n)
        yield jobs
        waiting = backlog(counts)
        for name, about, value in (
            ("ingot_job_backlog", "Jobs waiting or being processed.", waiting),
            ("ingot_job_instances", "Instances that run or are starting.", instances),
            ("ingot_job_backlog_per_instance", "Backlog per instance; at none, the backlog.",
             waiting / max(1, instances)),
        ):  # fmt: skip
            family = core.GaugeMetricFamily(name, about, labels=("model",))
            family.add_metric((self._model,), value)
            yield family

    def text(self) -> bytes:
        """Return every series in Prometheus text format."""
        prometheus = need("prometheus_client", extra="serve", what="Serving")
        text: bytes = prometheus.generate_latest(self._registry)
        return text
