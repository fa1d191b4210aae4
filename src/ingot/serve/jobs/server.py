"""Start, run and stop an asynchronous endpoint: its web server, supervisor and notifier."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ingot.core.errors import ServeError
from ingot.core.units import show_number
from ingot.serve.address import bind, url_of
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.decisions import DecisionLog
from ingot.serve.jobs.disks import need_local_disk
from ingot.serve.jobs.ends import Ends
from ingot.serve.jobs.job import MAX_TIMEOUT_S, JobState
from ingot.serve.jobs.notify import Notifier, read_key
from ingot.serve.jobs.places import need_drivers, remove_parts, remove_result
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.jobs.store import JobStore
from ingot.serve.jobs.supervisor import Supervisor
from ingot.serve.running import (
    Repeat,
    Running,
    need_server,
    run_until_stopped,
    start,
    tell_url,
)

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ingot.serve.access.gate import Gate
    from ingot.serve.jobs.desk import JobDesk

KEY_FILE = "webhook.key"
_TELL_S, _SWEEP_S = 0.1, 30.0
_SWEEP_AT_ONCE = 1000


def sweep(store: JobStore, settings: AsyncSettings) -> int:
    """Forget jobs whose retention is over or whose results take too much room.

    A result goes before its job does, so that nothing is left that nobody knows of.

    Returns:
        How many jobs were forgotten.
    """
    stale = store.stale(
        retention_s=settings.retention_s, max_bytes=settings.max_result_bytes, limit=_SWEEP_AT_ONCE
    )
    for job in stale:
        remove_result(job.output)
    folders = {settings.staging}
    if "://" not in settings.output:
        folders.add(Path(settings.output))
    for folder in folders:
        remove_parts(folder, older_s=2 * MAX_TIMEOUT_S, is_live=partial(_is_running, store))
    return store.forget([job.id for job in stale])


def _is_running(store: JobStore, job: str) -> bool:
    found = store.get(job)
    return found is not None and found.state is JobState.RUNNING


@dataclass(slots=True)
class RunningJobs(Running):
    """An asynchronous endpoint that answers, in threads of this process and instances beside it.

    What is queued when it stops stays queued, and is answered after the next start. Instances get
    `drain_s` to finish what they hold.

    Attributes:
        desk: What its routes ask.
        supervisor: Its instances.
    """

    desk: "JobDesk"
    supervisor: Supervisor

    @property
    def unfinished(self) -> str:
        """What is in flight and how long it gets at the end, in words."""
        instances = show_number(self.supervisor.instances, "instance")
        limit_s = self.desk.endpoint.drain_s
        return f"{instances} finish what they hold, at most {limit_s:g} s; queued jobs stay queued"

    def drain(self) -> None:
        """Refuse new jobs."""
        self.desk.is_draining = True


def check_places(settings: AsyncSettings) -> None:
    """Refuse places that jobs cannot be kept in or read from.

    Raises:
        StoreError: The folder is on a network.
        ServeError: A folder of inputs is not there.
        MissingExtraError: An object store has no driver.
    """
    need_drivers((*settings.roots, settings.output))
    need_local_disk(settings.folder)
    for root in settings.roots:
        if "://" not in root and not Path(root).is_dir():
            raise ServeError(
                f"Inputs must lie in a folder that exists; got {root!r}. Make it, or correct "
                "--allow."
            )


def serve_jobs_in_thread(endpoint: Endpoint, settings: AsyncSettings) -> RunningJobs:
    """Start an asynchronous endpoint and return when it is ready.

    Args:
        endpoint: What to serve; port 0 takes a free one.
        settings: How.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
        StoreError: The job store cannot be opened.
        ServeError: The address is taken, or the model does not answer.
    """
    need_server()
    from ingot.serve.assembly import open_surroundings
    from ingot.serve.jobs.app import build_jobs_app
    from ingot.serve.jobs.desk import JobDesk
    from ingot.serve.jobs.metrics import JobMetrics
    from ingot.serve.metrics import Metrics
    from ingot.serve.server import check_endpoints
    from ingot.serve.web import Server
    from ingot.serve.workers.workforce import Workforce

    check_endpoints((endpoint,))
    check_places(settings)
    with ExitStack() as stack:
        listener = stack.enter_context(bind(endpoint.host, endpoint.port))
        stack.enter_context(_sole_owner(settings.folder))
        ends = Ends(endpoint)
        stack.callback(ends.close)
        store = stack.enter_context(
            closing(settings.open_store(is_first=True, on_end=ends.note_unanswered))
        )
        decisions = stack.enter_context(closing(DecisionLog(settings.folder / "scaling.sqlite")))
        supervisor = Supervisor(endpoint, settings, store, decisions)
        supervisor.start()
        stack.callback(supervisor.stop, drain_s=endpoint.drain_s)
        notifier = Notifier(
            store, read_key(settings.folder / KEY_FILE), allowed=settings.notify_networks
        )
        stack.callback(notifier.close)
        stack.callback(Repeat("ingot-tell", _TELL_S, notifier.tell).stop)
        stack.callback(Repeat("ingot-sweep", _SWEEP_S, lambda: sweep(store, settings)).stop)
        desk = JobDesk(
            endpoint, settings, store, decisions,
            wake=supervisor.wake, is_ready=lambda: supervisor.is_ready,
            trouble=lambda: supervisor.trouble,
        )  # fmt: skip
        stack.callback(desk.close)
        metrics = JobMetrics(desk.name, store, instances=lambda: supervisor.instances)
        around = open_surroundings(endpoint, stack, keeps_log=False)
        more = _console(desk, supervisor, around.gate)
        app = build_jobs_app(desk, metrics, around, ends=ends, more=more)
        # no worker of its own: instances answer, and the supervisor has them
        server = Server(app, endpoint, Workforce([], Metrics()))
        thread = start(server, listener)
        url = url_of(listener, endpoint.tls)
        return RunningJobs(url, server, thread, stack.pop_all(), desk, supervisor)
    raise AssertionError("unreachable: an ExitStack that is popped swallows nothing")


def _console(desk: "JobDesk", supervisor: Supervisor, gate: "Gate | None") -> "Sequence[BaseRoute]":
    if not desk.endpoint.console:
        return ()
    from ingot.serve.console.site import console_routes
    from ingot.serve.jobs.console import console_of_jobs

    console = console_of_jobs(desk, instances=lambda: supervisor.instances)
    return console_routes(console, desk.endpoint, gate=gate)


@contextmanager
def _sole_owner(folder: Path) -> Iterator[None]:
    """Hold a folder against a second server; the lock goes with the process, however it ends."""
    import fcntl  # late: only systems that can serve have it

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServeError(
                f"A folder of jobs must have one server; {folder} has one that runs. "
                "Stop it, or choose another folder with --folder."
            ) from error
        yield


def run_jobs(
    endpoint: Endpoint,
    settings: AsyncSettings,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve jobs until SIGTERM, SIGINT or SIGHUP, then drain. Call it from the main thread.

    Args:
        endpoint: What to serve.
        settings: How.
        on_ready: Told the URL once jobs are accepted.

    Raises:
        IngotError: As `serve_jobs_in_thread`, or the server died.
    """
    run_until_stopped(lambda: serve_jobs_in_thread(endpoint, settings), tell_url(on_ready))
