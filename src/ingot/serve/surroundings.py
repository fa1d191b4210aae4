"""What stands around the models of a server."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ingot.serve.access.gate import Gate
from ingot.serve.access.rates import RateLimits
from ingot.serve.metrics import Metrics
from ingot.serve.state import ObservationSink

if TYPE_CHECKING:
    from ingot.serve.tracing import Tracer


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Who may ask, how often, and what is counted and kept of it.

    Attributes:
        metrics: What is counted.
        log: Where observations go; None keeps none.
        gate: Who may ask; None lets everybody.
        limits: How often each caller may; None for any.
        tracer: Makes a span of every request; None makes none.
    """

    metrics: Metrics = field(default_factory=Metrics)
    log: ObservationSink | None = None
    gate: Gate | None = None
    limits: RateLimits | None = None
    tracer: "Tracer | None" = None
