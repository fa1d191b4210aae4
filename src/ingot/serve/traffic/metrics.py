"""The traffic of every name, as Prometheus reads it."""

from collections.abc import Iterator, Mapping
from typing import Any

from ingot.core.extras import need
from ingot.serve.traffic.agreement import Sums
from ingot.serve.traffic.desk import TrafficDesk

_VERSION = ("model", "version")


class TrafficMetrics:
    """Weights, and what became of copies; read when Prometheus asks.

    Args:
        desks: Traffic by name of the model.
    """

    def __init__(self, desks: Mapping[str, TrafficDesk]) -> None:
        self._desks = desks

    # prometheus_client is untyped here
    def collect(self) -> Iterator[Any]:
        """Yield every family."""
        core = need("prometheus_client.core", extra="serve", what="Serving")
        weights = core.GaugeMetricFamily(
            "ingot_traffic_weight", "Share of the requests that a version gets.", labels=_VERSION
        )
        for name, desk in self._desks.items():
            for number, weight in desk.table.split.weights:
                weights.add_metric((name, str(number)), weight)
        yield weights
        for desk in self._desks.values():
            if desk.plan.shadow is not None and desk.sums is not None:
                yield from _copies(core, (desk.name, str(desk.plan.shadow.version)), desk.sums)


def _copies(core: Any, labels: tuple[str, str], sums: Sums) -> Iterator[Any]:
    copies = core.CounterMetricFamily(
        "ingot_shadow_copies", "Copies run, by the statuses of both sides.",
        labels=(*_VERSION, "given", "shadow"),
    )  # fmt: skip
    for (given, shadow), count in sums.statuses.copy().items():
        copies.add_metric((*labels, str(given), str(shadow)), count)
    dropped = core.CounterMetricFamily(
        "ingot_shadow_dropped", "Copies not run because the shadow was busy.", labels=_VERSION
    )
    dropped.add_metric(labels, sums.dropped)
    by_output = (*_VERSION, "output")
    compared = core.CounterMetricFamily(
        "ingot_shadow_compared", "Outputs that both sides gave.", labels=by_output
    )
    agreed = core.CounterMetricFamily(
        "ingot_shadow_agreed", "Outputs in which both sides agreed.", labels=by_output
    )
    largest = core.GaugeMetricFamily(
        "ingot_shadow_largest_difference", "Largest absolute difference of values.",
        labels=by_output,
    )  # fmt: skip
    for output, one in sums.outputs.copy().items():
        compared.add_metric((*labels, output), one.compared)
        agreed.add_metric((*labels, output), one.agreed)
        largest.add_metric((*labels, output), one.largest)
    yield from (copies, dropped, compared, agreed, largest)
