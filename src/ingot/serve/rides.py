"""Which traced requests a call of the engine serves, without the library that makes the traces."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Ride:
    """A traced request on its way to the engine.

    Attributes:
        context: What spans of it belong to; Any, for the library that makes it is an extra.
        arrived_ns: When it arrived, UTC nanoseconds since 1970.
    """

    context: Any
    arrived_ns: int


# Empty for requests that are not traced. Set by whoever begins a trace, and by the batcher, whose
# calls serve several requests; tasks and threads inherit it.
RIDES: ContextVar[tuple[Ride, ...]] = ContextVar("ingot_rides", default=())
