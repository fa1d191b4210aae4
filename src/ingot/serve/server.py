"""Start, run and stop an endpoint."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingot.core.errors import ServeError
from ingot.runtime.engine import Session
from ingot.serve.address import bind, check_tls, url_of
from ingot.serve.endpoint import Endpoint
from ingot.serve.running import TICK_S, Running, need_server, run_until_stopped, start

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ingot.observe.log import ObservationLog
    from ingot.serve.access.gate import Gate
    from ingot.serve.metrics import Metrics
    from ingot.serve.state import Served, State

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunningEndpoint(Running):
    """An endpoint that answers, in a thread of this process.

    Attributes:
        states: Readiness and requests in flight of every model.
        drain_s: Seconds that requests in flight get at the end.
    """

    states: "tuple[State, ...]"
    drain_s: float

    @property
    def state(self) -> "State":
        """Readiness and requests in flight of the first model."""
        return self.states[0]

    @property
    def grpc_port(self) -> int | None:
        """Where it answers over gRPC; None if it does not."""
        return None if self.server.rpc is None else self.server.rpc.port

    def drain(self) -> None:
        """Refuse new requests and let those in flight finish within `drain_s`."""
        for state in self.states:
            state.is_draining = True
        deadline = time.monotonic() + self.drain_s
        while self._is_busy and time.monotonic() < deadline and self.is_alive:
            time.sleep(TICK_S)

    @property
    def _is_busy(self) -> bool:
        return any(state.in_flight for state in self.states)


def serve_in_thread(endpoint: Endpoint, session: Session | None = None) -> RunningEndpoint:
    """Start an endpoint in a thread and return when it is ready.

    Args:
        endpoint: What to serve; port 0 takes a free one.
        session: An open session to use, which stays the caller's; opened from the version's
            configuration, and closed at the end, if not given.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
        ServeError: The address is taken, or the model does not answer.
        EngineError: No session can be opened.
    """
    need_server()
    from ingot.serve.app import build_app
    from ingot.serve.metrics import Metrics
    from ingot.serve.web import Server
    from ingot.serve.workers.workforce import Workforce

    endpoints = (endpoint, *endpoint.beside)
    check_endpoints(endpoints)
    with ExitStack() as stack:
        listener = stack.enter_context(bind(endpoint.host, endpoint.port))
        gate = open_gate(endpoint, stack)
        sessions = (session, *(None for _ in endpoint.beside))
        served = [_serve(*pair, stack) for pair in zip(endpoints, sessions, strict=True)]
        metrics = Metrics()
        workforce = Workforce(served, metrics)
        observations = _open_log(endpoint)
        if observations is not None:
            stack.callback(observations.close)
        more = _console(served, metrics, gate, stack)
        app = build_app(served, observations, metrics=metrics, gate=gate, more=more)
        server = Server(app, endpoint, workforce)
        thread = start(server, listener)
        url, states = url_of(listener, endpoint.tls), tuple(one.state for one in served)
        return RunningEndpoint(url, server, thread, stack.pop_all(), states, endpoint.drain_s)
    raise AssertionError("unreachable: an ExitStack that is popped swallows nothing")


def run(
    endpoint: Endpoint,
    session: Session | None = None,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Call it from the main thread.

    Args:
        endpoint: What to serve.
        session: An open session to use; see `serve_in_thread`.
        on_ready: Told the URL once requests are answered; with port 0 this is how it is learnt.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
        ServeError: The address is taken, the model does not answer, or the server died.
        EngineError: No session can be opened.
    """
    run_until_stopped(lambda: serve_in_thread(endpoint, session), on_ready)


def check_endpoints(endpoints: Sequence[Endpoint]) -> None:
    """Refuse settings that cannot be served, before anything is opened.

    Raises:
        ServeError: A number is out of range, or one version is served twice.
    """
    for endpoint in endpoints:
        label = endpoint.version.label
        limits = {
            "timeout_s": endpoint.timeout_s, "read_timeout_s": endpoint.read_timeout_s,
            "max_body_bytes": endpoint.max_body_bytes, "max_waiting": endpoint.max_waiting,
        }  # fmt: skip
        for name, value in limits.items():
            if not value > 0:
                raise ServeError(f"{name} of {label} must be above 0; got {value}. Raise it.")
        batching = endpoint.batching
        if batching is not None and (batching.max_rows < 2 or batching.max_wait_ms < 0):
            raise ServeError(
                f"Batching of {label} must have max_rows >= 2 and max_wait_ms >= 0; got {batching}."
                " Leave it out to run each request alone."
            )
        if endpoint.workers < 0:
            raise ServeError(
                f"workers of {label} must be 0 or more; got {endpoint.workers}. Use 0 to run the "
                "model in the server's own process."
            )
    check_tls(endpoints[0].tls)
    if endpoints[0].console:
        from ingot.serve.console.site import check_console

        check_console(endpoints[0])
    labels = [endpoint.version.label for endpoint in endpoints]
    for label in labels:
        if labels.count(label) > 1:
            raise ServeError(f"A version must be served once; got {label} twice. Leave one out.")


def _open_session(endpoint: Endpoint) -> Session:
    from ingot.runtime.engines import open_session

    return open_session(endpoint.model, endpoint.version.config)


def _open_log(endpoint: Endpoint) -> "ObservationLog | None":
    if endpoint.log is None:
        return None
    from ingot.observe.log import ObservationLog

    return ObservationLog(endpoint.log)


def open_gate(endpoint: Endpoint, stack: ExitStack) -> "Gate | None":
    """Return what lets callers in, closed with the stack; None lets everybody."""
    if endpoint.access is None:
        return None
    from ingot.serve.access.gate import Gate

    gate = Gate(endpoint.access)
    stack.callback(gate.close)
    return gate


def _console(
    served: "Sequence[Served]", metrics: "Metrics", gate: "Gate | None", stack: ExitStack
) -> "list[BaseRoute]":
    """Return the routes of the console, fed until the stack is closed; none unless asked for."""
    endpoint = served[0].endpoint
    if not endpoint.console:
        return []
    from ingot.serve.console.endpoints import console_of
    from ingot.serve.console.site import console_routes

    console, feeding = console_of(served, metrics)
    stack.callback(feeding.stop)
    return console_routes(console, endpoint, gate=gate)


def _serve(endpoint: Endpoint, session: Session | None, stack: ExitStack) -> "Served":
    """Return a model with its state, warm if it runs in this process."""
    from ingot.serve.state import Served, State

    state = State()
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
