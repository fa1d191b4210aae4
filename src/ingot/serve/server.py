"""Start, run and stop an endpoint."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from ingot.core.errors import ServeError
from ingot.core.extras import need
from ingot.runtime.engine import Session
from ingot.serve.endpoint import Endpoint, Tls

if TYPE_CHECKING:
    from ingot.observe.log import ObservationLog
    from ingot.serve.access.gate import Gate
    from ingot.serve.state import Served, State
    from ingot.serve.web import Server

log = logging.getLogger(__name__)

_TICK_S = 0.005


@dataclass(slots=True)
class Running:
    """An endpoint that answers, in a thread of this process. A context manager that stops it.

    Attributes:
        url: Where it answers, e.g. `http://127.0.0.1:8000`.
        states: Readiness and requests in flight of every model.
    """

    url: str
    states: "tuple[State, ...]"
    _drain_s: float
    _server: "Server"
    _thread: threading.Thread
    _resources: ExitStack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def state(self) -> "State":
        """Readiness and requests in flight of the first model."""
        return self.states[0]

    @property
    def grpc_port(self) -> int | None:
        """Where it answers over gRPC; None if it does not."""
        return None if self._server.rpc is None else self._server.rpc.port

    @property
    def is_alive(self) -> bool:
        """Whether the server still runs."""
        return self._thread.is_alive()

    @property
    def _is_busy(self) -> bool:
        return any(state.in_flight for state in self.states)

    def stop(self) -> None:
        """Drain and end: refuse new requests, finish those in flight within `drain_s`, close all.

        Calling it again does nothing.
        """
        for state in self.states:
            state.is_draining = True
        deadline = time.monotonic() + self._drain_s
        while self._is_busy and time.monotonic() < deadline and self.is_alive:
            time.sleep(_TICK_S)
        self._server.should_exit = True
        self._thread.join()
        self._resources.close()


def serve_in_thread(endpoint: Endpoint, session: Session | None = None) -> Running:
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
    for module in ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client"):
        need(module, extra="serve", what="Serving")
    from ingot.serve.app import build_app
    from ingot.serve.metrics import Metrics
    from ingot.serve.web import Server
    from ingot.serve.workers.workforce import Workforce

    endpoints = (endpoint, *endpoint.beside)
    check_endpoints(endpoints)
    with ExitStack() as stack:
        listener = stack.enter_context(_bind(endpoint.host, endpoint.port))
        gate = _open_gate(endpoint)
        if gate is not None:
            stack.callback(gate.close)
        sessions = (session, *(None for _ in endpoint.beside))
        served = [_serve(*pair, stack) for pair in zip(endpoints, sessions, strict=True)]
        metrics = Metrics()
        workforce = Workforce(served, metrics)
        observations = _open_log(endpoint)
        if observations is not None:
            stack.callback(observations.close)
        app = build_app(served, observations, metrics=metrics, gate=gate)
        server = Server(app, endpoint, workforce)
        thread = _start(server, listener)
        url, states = _url(listener, endpoint.tls), tuple(one.state for one in served)
        return Running(url, states, endpoint.drain_s, server, thread, stack.pop_all())
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
    with _stop_signals() as asked:
        running = serve_in_thread(endpoint, session)
        try:
            log.info("%s answers at %s", endpoint.version.label, running.url)
            if on_ready is not None:
                on_ready(running.url)
            while not asked.wait(1.0) and running.is_alive:
                continue
            died = not running.is_alive
        finally:
            running.stop()
    if died:
        raise ServeError(
            f"The server at {running.url} must run until it is stopped; it ended by itself. "
            "The lines above in the log say why."
        )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    asked = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if asked.is_set():  # the second time the user means it: do not wait for anybody
            raise KeyboardInterrupt
        log.info("%s: draining", signal.Signals(number).name)
        asked.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url(listener: socket.socket, tls: Tls | None) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


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
    _check_tls(endpoints[0].tls)
    labels = [endpoint.version.label for endpoint in endpoints]
    for label in labels:
        if labels.count(label) > 1:
            raise ServeError(f"A version must be served once; got {label} twice. Leave one out.")


def _check_tls(tls: Tls | None) -> None:
    if tls is None:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"Certificate and key must be PEM files that belong together; got {error}. "
            "Check --tls-cert and --tls-key."
        ) from error


def _bind(host: str, port: int) -> socket.socket:
    # bound now, so that a taken port fails before a model is loaded; listening starts when ready
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServeError(
            f"An endpoint must have an address of its own; {host}:{port} gives {error.strerror}. "
            "Choose another port, or 0 for a free one."
        ) from error
    return listener


def _open_session(endpoint: Endpoint) -> Session:
    from ingot.runtime.engines import open_session

    return open_session(endpoint.model, endpoint.version.config)


def _open_log(endpoint: Endpoint) -> "ObservationLog | None":
    if endpoint.log is None:
        return None
    from ingot.observe.log import ObservationLog

    return ObservationLog(endpoint.log)


def _open_gate(endpoint: Endpoint) -> "Gate | None":
    if endpoint.access is None:
        return None
    from ingot.serve.access.gate import Gate

    return Gate(endpoint.access)


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


def _start(server: "Server", listener: socket.socket) -> threading.Thread:
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="ingot-serve", daemon=True
    )
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(_TICK_S)
    if server.failure is not None:
        raise server.failure
    if not server.started:
        raise ServeError("The web server must start; it ended at once. The log says why.")
    return thread


def _close_session(session: Session, state: "State") -> None:
    if running := state.threads.running:
        log.warning("%d requests were still in the engine when it had to stop", running)
        return  # freeing memory under a running engine call would crash the process
    session.close()
