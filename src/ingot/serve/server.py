"""Start, run and stop an endpoint."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingot.core.errors import ServeError
from ingot.core.units import show_number
from ingot.runtime.engine import Session
from ingot.runtime.generation.decoding import Decoding
from ingot.serve.address import bind, check_tls, url_of
from ingot.serve.desks import check_traffic
from ingot.serve.endpoint import Endpoint
from ingot.serve.running import (
    TICK_S,
    Running,
    need_server,
    run_until_stopped,
    start,
    tell_url,
)

if TYPE_CHECKING:
    from ingot.serve.state import State

_LAST_PORT = 65_535


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
    def unfinished(self) -> str:
        """What is in flight and how long it gets at the end, in words."""
        requests = show_number(sum(state.in_flight for state in self.states), "request")
        return f"{requests} in flight, at most {self.drain_s:g} s"

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


def serve_in_thread(
    endpoint: Endpoint, session: Session | Decoding | None = None
) -> RunningEndpoint:
    """Start an endpoint in a thread and return when it is ready.

    Args:
        endpoint: What to serve; port 0 takes a free one.
        session: An open session to use, or an open decoder where texts are written, which stays
            the caller's; opened from the version's configuration, and closed at the end, if not
            given.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
        ServeError: The address is taken, or the model does not answer.
        EngineError: No session can be opened.
    """
    need_server()
    from ingot.serve.assembly import assemble
    from ingot.serve.web import Server

    check_endpoints((endpoint, *endpoint.beside))
    with ExitStack() as stack:
        listener = stack.enter_context(bind(endpoint.host, endpoint.port))
        parts = assemble(endpoint, stack, session)
        server = Server(parts.app, endpoint, parts.workforce)
        thread = start(server, listener)
        parts.start_desks()
        url = url_of(listener, endpoint.tls)
        return RunningEndpoint(url, server, thread, stack.pop_all(), parts.states, endpoint.drain_s)
    raise AssertionError("unreachable: an ExitStack that is popped swallows nothing")


def run(
    endpoint: Endpoint,
    session: Session | Decoding | None = None,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain. Call it from the main thread.

    Args:
        endpoint: What to serve.
        session: An open session to use; see `serve_in_thread`.
        on_ready: Told the URL once requests are answered; with port 0 this is how it is learnt.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
        ServeError: The address is taken, the model does not answer, or the server died.
        EngineError: No session can be opened.
    """
    run_until_stopped(lambda: serve_in_thread(endpoint, session), tell_url(on_ready))


def check_endpoints(endpoints: Sequence[Endpoint]) -> None:
    """Refuse settings that cannot be served, before anything is opened.

    Raises:
        ServeError: A number is out of range, or one version is served twice.
    """
    for endpoint in endpoints:
        label = endpoint.version.label
        if endpoint.generation is not None:
            _check_generation(endpoint)
        limits = {
            "timeout_s": endpoint.timeout_s, "read_timeout_s": endpoint.read_timeout_s,
            "load_timeout_s": endpoint.load_timeout_s,
            "max_body_bytes": endpoint.max_body_bytes, "max_waiting": endpoint.max_waiting,
        }  # fmt: skip
        for name, value in limits.items():
            if not value > 0:
                raise ServeError(f"{name} of {label} must be above 0; got {value}. Raise it.")
        _check_address(endpoint)
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
    check_traffic(endpoints)
    if endpoints[0].console:
        from ingot.serve.console.site import check_console

        check_console(endpoints[0])
    labels = [endpoint.version.label for endpoint in endpoints]
    for label in labels:
        if labels.count(label) > 1:
            raise ServeError(f"A version must be served once; got {label} twice. Leave one out.")


def _check_address(endpoint: Endpoint) -> None:
    for name in ("port", "grpc_port"):
        port = getattr(endpoint, name)
        if port is not None and not 0 <= port <= _LAST_PORT:
            raise ServeError(
                f"{name} of {endpoint.version.label} must be 1 to {_LAST_PORT}, or 0 for a free "
                f"one; got {port}. Choose another."
            )
    if not 0 <= endpoint.drain_s < math.inf:
        raise ServeError(
            f"drain_s of {endpoint.version.label} must be 0 s or longer; got "
            f"{endpoint.drain_s:g}. Correct it."
        )


def _check_generation(endpoint: Endpoint) -> None:
    from ingot.serve.generation.writer import check_generation

    if endpoint.finite_only:
        raise ServeError(
            "Only a model that takes numbers can be asked for finite ones; "
            f"{endpoint.version.label} writes texts. Leave --finite (finite_only) out."
        )
    check_generation(endpoint)
