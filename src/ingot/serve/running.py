"""A server that runs in a thread: started, kept until a signal comes, drained, ended."""

import logging
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from ingot.core.closing import Closing
from ingot.core.errors import ServeError
from ingot.core.extras import need

if TYPE_CHECKING:
    from ingot.serve.web import Server

log = logging.getLogger(__name__)

TICK_S = 0.005


@dataclass(slots=True)
class Running(Closing, ABC):
    """A server that answers, in a thread of this process. A context manager that stops it.

    Attributes:
        url: Where it answers, e.g. `http://127.0.0.1:8000`.
        server: Its web server.
        thread: Where that runs.
        resources: What is closed after it.
    """

    url: str
    server: "Server"
    thread: threading.Thread
    resources: ExitStack

    def close(self) -> None:
        """Stop."""
        self.stop()

    @property
    def grpc_port(self) -> int | None:
        """Where it answers over gRPC; None if it does not."""
        return None if self.server.rpc is None else self.server.rpc.port

    @property
    @abstractmethod
    def unfinished(self) -> str:
        """What is in flight and how long it gets at the end, in words."""

    @property
    def is_alive(self) -> bool:
        """Whether the web server still runs."""
        return self.thread.is_alive()

    def stop(self) -> None:
        """Drain and end; calling it again does nothing."""
        self.drain()
        self.server.should_exit = True
        self.thread.join()
        self.resources.close()

    @abstractmethod
    def drain(self) -> None:
        """Refuse what is new and wait for what is in flight, as long as that may take."""


class Repeat:
    """Something done again and again in a thread, until stopped.

    Args:
        name: Name of the thread.
        every_s: Seconds between the end of one time and the next.
        do: What; an error of it is logged and the next time comes.
    """

    def __init__(self, name: str, every_s: float, do: Callable[[], object]) -> None:
        self._every_s, self._do = every_s, do
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the last time is over."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._do()
            except Exception:  # a thread's edge
                log.exception("%s goes on", self._thread.name)


def need_server() -> None:
    """Check that a web server can be started.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
    """
    for module in ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client"):
        need(module, extra="serve", what="Serving")


def start(server: "Server", listener: socket.socket) -> threading.Thread:
    """Run a web server in a thread and return that when it answers.

    Raises:
        ServeError: It ended at once.
        IngotError: Whatever kept it from starting.
    """
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="ingot-serve", daemon=True
    )
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(TICK_S)
    if server.failure is not None:
        raise server.failure
    if not server.started:
        raise ServeError("The web server must start; it ended at once. The log says why.")
    return thread


def run_until_stopped(
    begin: Callable[[], Running],
    on_ready: Callable[[Running], None],
    *,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain. Call it from the main thread.

    Args:
        begin: Starts the server.
        on_ready: Told once it answers.
        say: Told of its end, before and after; it must not raise.

    Raises:
        ServeError: The server died.
        IngotError: It could not be started.
    """
    with stop_signals() as asked:
        running = begin()
        try:
            log.info("answering at %s", running.url)
            on_ready(running)
            while not asked.wait(1.0) and running.is_alive:
                continue
            died = not running.is_alive
            if say is not None and not died:
                say(f"draining: {running.unfinished}")
        finally:
            running.stop()
    if say is not None:
        say("stopped")
    if died:
        raise ServeError(
            f"The server at {running.url} must run until it is stopped; it ended by itself. "
            "The lines above in the log say why."
        )


def tell_url(on_ready: Callable[[str], None] | None) -> Callable[[Running], None]:
    """Return what tells somebody, or nobody, the URL of a server."""
    return lambda running: None if on_ready is None else on_ready(running.url)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Give an event that SIGTERM, SIGINT and SIGHUP set; the second one interrupts.

    SIGHUP, the end of the terminal, is left alone where it is ignored, as under nohup.
    """
    asked = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if asked.is_set():  # the second time the user means it: do not wait for anybody
            raise KeyboardInterrupt
        log.info("%s: draining", signal.Signals(number).name)
        asked.set()

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
