"""Start, run and stop an endpoint."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from ingot.core.errors import ServeError
from ingot.core.extras import need
from ingot.runtime.engine import Session
from ingot.serve.endpoint import Endpoint

if TYPE_CHECKING:
    from ingot.observe.log import ObservationLog
    from ingot.serve.infer import State

log = logging.getLogger(__name__)

_TICK_S = 0.005
_KEEP_ALIVE_S = 60


@dataclass(slots=True)
class Running:
    """An endpoint that answers, in a thread of this process. A context manager that stops it.

    Attributes:
        url: Where it answers, e.g. `http://127.0.0.1:8000`.
        state: Readiness and requests in flight.
    """

    url: str
    state: "State"
    _drain_s: float
    _server: Any  # a uvicorn.Server, imported late
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
    def is_alive(self) -> bool:
        """Whether the server still runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Drain and end: refuse new requests, finish those in flight within `drain_s`, close all.

        Calling it again does nothing.
        """
        self.state.is_draining = True
        deadline = time.monotonic() + self._drain_s
        while self.state.in_flight and time.monotonic() < deadline and self.is_alive:
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
    for module in ("starlette", "uvicorn", "msgspec", "prometheus_client"):
        need(module, extra="serve", what="Serving")
    from ingot.serve.app import build_app
    from ingot.serve.infer import State

    with ExitStack() as stack:
        listener = stack.enter_context(_bind(endpoint.host, endpoint.port))
        state = State()
        if session is None:
            session = _open_session(endpoint)
            stack.callback(_close_session, session, state)
        stack.callback(_end_pool, state)
        _make_ready(endpoint, session, state)
        observations = _open_log(endpoint)
        if observations is not None:
            stack.callback(observations.close)
        app = build_app(endpoint, session, observations, state=state)
        server, thread = _start(app, listener)
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return Running(url, state, endpoint.drain_s, server, thread, stack.pop_all())
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


def _make_ready(endpoint: Endpoint, session: Session, state: "State") -> None:
    from ingot.serve.protocol import encode_request
    from ingot.serve.warmup import inline_limit, warm_up

    feeds, latency_ms = warm_up(session, endpoint.model.signature, endpoint.version.config)
    state.inline_bytes = inline_limit(latency_ms, len(encode_request(feeds)))
    state.is_warm = True


def _start(app: Any, listener: socket.socket) -> tuple[Any, threading.Thread]:
    import uvicorn

    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,  # what is still in flight then has had its drain_s already
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="ingot-serve", daemon=True
    )
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(_TICK_S)
    if not server.started:
        raise ServeError("The web server must start; it ended at once. The log says why.")
    return server, thread


def _end_pool(state: "State") -> None:
    # an engine call cannot be interrupted: one that outlived its drain is left to the process's end
    state.pool.shutdown(wait=not state.in_flight, cancel_futures=True)


def _close_session(session: Session, state: "State") -> None:
    if state.in_flight:
        log.warning("%d requests were still in the engine when it had to stop", state.in_flight)
        return  # freeing memory under a running engine call would crash the process
    session.close()
