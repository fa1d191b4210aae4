"""What an application knows of one model that it serves, and whoever starts and stops it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ingot.data.data import Array
from ingot.observe.observation import Observation
from ingot.runtime.engine import Session
from ingot.serve.endpoint import Endpoint
from ingot.serve.room import Room
from ingot.serve.runner import Runner, Threads


class ObservationSink(Protocol):
    """Where observations go; `ingot.observe.log.ObservationLog` is one."""

    @property
    def dropped(self) -> int:
        """How many could not be kept."""
        ...

    @property
    def thinned(self) -> int:
        """How many refused requests were left out, so that a flood of them is bounded."""
        ...

    def record(self, observation: Observation) -> None:
        """Take one without waiting for the disk."""
        ...


@dataclass(slots=True)
class State:
    """How one model is doing.

    Attributes:
        is_warm: A real inference has succeeded, in every worker if there are any.
        is_draining: The endpoint was told to stop.
        in_flight: Inference requests being read or answered.
        waiting: Those of them that are whole and not answered on the event loop at once.
        inline_bytes: Request bodies up to this size are answered on the event loop, larger ones
            in a thread; see `ingot.serve.warmup.inline_limit`.
        sample: Inputs that the model has answered.
        runner: What answers instead of a session in this process.
        threads: Those threads.
        room: What the bodies of its requests take, shared by all models of a server.
        trouble: Says why nothing may be able to answer; empty if nothing is known.
    """

    is_warm: bool = False
    is_draining: bool = False
    in_flight: int = 0
    waiting: int = 0
    inline_bytes: int = 0
    sample: Mapping[str, Array] | None = None
    runner: Runner | None = None
    threads: Threads = field(default_factory=Threads)
    room: Room = field(default_factory=Room)
    trouble: Callable[[], str] = str

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent here."""
        able = self.runner is None or self.runner.ready > 0
        return self.is_warm and not self.is_draining and able


@dataclass(slots=True)
class Served:
    """One model of an application.

    Attributes:
        endpoint: What is served.
        state: How it is doing.
        session: Runs it in this process; None where `state.runner` does.
    """

    endpoint: Endpoint
    state: State
    session: Session | None = None
