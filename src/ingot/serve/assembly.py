"""What a server is made of: an application, its runners, and everything that they need open."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingot.runtime.engine import Session
from ingot.runtime.generation.decoding import Decoding
from ingot.serve.app import build_app
from ingot.serve.desks import open_desks, start_desks
from ingot.serve.endpoint import Endpoint
from ingot.serve.room import Room
from ingot.serve.state import Served, State
from ingot.serve.surroundings import Surroundings
from ingot.serve.traffic.desk import TrafficDesk
from ingot.serve.workers.workforce import Workforce

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.routing import BaseRoute

    from ingot.observe.log import ObservationLog
    from ingot.serve.access.gate import Gate
    from ingot.serve.access.rates import RateLimits
    from ingot.serve.tracing import Tracer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a web server, ours or another's, needs to answer for an endpoint.

    Attributes:
        app: The ASGI application.
        workforce: To be started before the first request, and closed after the last.
        served: Every model with its state.
        desks: Traffic by name of the model.
    """

    app: "Starlette"
    workforce: Workforce
    served: tuple[Served, ...]
    desks: Mapping[str, TrafficDesk]

    @property
    def states(self) -> tuple[State, ...]:
        """Readiness and requests in flight of every model."""
        return tuple(one.state for one in self.served)

    def start_desks(self) -> None:
        """Look after traffic from now on; once requests are answered."""
        start_desks(self.desks, self.served)


def assemble(
    endpoint: Endpoint, stack: ExitStack, session: Session | Decoding | None = None
) -> Parts:
    """Open what an endpoint needs, closed with the stack.

    Args:
        endpoint: What to serve, its settings checked.
        stack: Closes it.
        session: An open session to use; see `ingot.serve.server.serve_in_thread`.

    Raises:
        ServeError: The model does not answer.
        EngineError: No session can be opened.
    """
    everyone = (endpoint, *endpoint.beside)
    room = Room.of(max(one.max_body_bytes for one in everyone), endpoint.max_in_flight_bytes)
    around = open_surroundings(endpoint, stack)
    sessions = (session, *(None for _ in endpoint.beside))
    pairs = zip(everyone, sessions, strict=True)
    served = tuple(_serve(*pair, stack, room) for pair in pairs)
    tracer = around.tracer
    if tracer is not None:
        for one in served:
            one.session = None if one.session is None else tracer.session(one.session)
    working = [one for one in served if not one.endpoint.generation]
    workforce = Workforce(working, around.metrics, tracer=tracer)
    desks = open_desks(served, around.log, stack)
    more = _console(served, around, desks, stack)
    app = build_app(served, around, desks=desks, more=more)
    return Parts(app, workforce, served, desks)


def _open_session(endpoint: Endpoint) -> Session:
    from ingot.runtime.engines import open_session

    return open_session(endpoint.model, endpoint.version.config)


def open_surroundings(
    endpoint: Endpoint, stack: ExitStack, *, keeps_log: bool = True
) -> Surroundings:
    """Open what stands around the models of a server, closed with the stack.

    Args:
        endpoint: The first; what is about the address is taken from it.
        stack: Closes it.
        keeps_log: Whether requests are observed there.

    Raises:
        MissingExtraError: An extra that is asked for is not installed.
        LedgerError: The observation log is no SQLite file.
    """
    return Surroundings(
        log=_open_log(endpoint, stack) if keeps_log else None,
        gate=_open_gate(endpoint, stack),
        limits=_open_limits(endpoint),
        tracer=_open_tracer(endpoint, stack),
    )


def _open_log(endpoint: Endpoint, stack: ExitStack) -> "ObservationLog | None":
    if endpoint.log is None:
        return None
    from ingot.observe.log import ObservationLog

    return stack.enter_context(ObservationLog(endpoint.log, rules=endpoint.log_rules))


def _open_gate(endpoint: Endpoint, stack: ExitStack) -> "Gate | None":
    if endpoint.access is None:
        return None
    from ingot.serve.access.gate import Gate

    return stack.enter_context(closing(Gate(endpoint.access)))


def _open_tracer(endpoint: Endpoint, stack: ExitStack) -> "Tracer | None":
    if endpoint.tracing is None:
        return None
    from ingot.serve.tracing import Tracer

    return stack.enter_context(closing(Tracer(endpoint.tracing)))


def _open_limits(endpoint: Endpoint) -> "RateLimits | None":
    if endpoint.rate is None and (endpoint.access is None or endpoint.access.keys is None):
        return None  # where there are keys, one may have a rate of its own
    from ingot.serve.access.rates import RateLimits

    return RateLimits(endpoint.rate)


def _console(
    served: Sequence[Served],
    around: Surroundings,
    desks: Mapping[str, TrafficDesk],
    stack: ExitStack,
) -> "list[BaseRoute]":
    """Return the routes of the console, fed until the stack is closed; none unless asked for."""
    endpoint = served[0].endpoint
    if not endpoint.console:
        return []
    from ingot.serve.console.endpoints import console_of
    from ingot.serve.console.site import console_routes

    console, feeding = console_of(served, around.metrics, desks)
    stack.callback(feeding.stop)
    return console_routes(console, endpoint, gate=around.gate)


def _serve(
    endpoint: Endpoint, session: Session | Decoding | None, stack: ExitStack, room: Room
) -> "Served":
    """Return a model with its state, warm if it runs in this process."""
    state = State(room=room)
    if endpoint.generation is not None or isinstance(session, Decoding):
        from ingot.serve.generation.writer import open_writer

        stack.callback(state.threads.close)
        decoding = session if isinstance(session, Decoding) else None
        state.runner, state.is_warm = open_writer(endpoint, stack, decoding), True
        return Served(endpoint, state)
    if session is None and endpoint.workers == 0:
        session = _open_session(endpoint)
        stack.callback(_close_session, session, state)
    stack.callback(state.threads.close)
    if session is not None:
        _make_ready(endpoint, session, state)
    return Served(endpoint, state, session)


def _make_ready(endpoint: Endpoint, session: Session, state: "State") -> None:
    from ingot.serve.protocol import encode_request
    from ingot.serve.warmup import inline_limit, warm_up

    feeds, latency_ms = warm_up(session, endpoint.model.signature, endpoint.version.config)
    state.inline_bytes = inline_limit(latency_ms, len(encode_request(feeds)))
    state.sample = feeds
    state.is_warm = True


def _close_session(session: Session, state: "State") -> None:
    if running := state.threads.running:
        log.warning("%d requests were still in the engine when it had to stop", running)
        return  # freeing memory under a running engine call would crash the process
    session.close()
