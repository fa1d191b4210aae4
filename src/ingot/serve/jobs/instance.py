"""An instance: a process that opens the model once and works through jobs under leases."""

import contextlib
import errno
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias

from ingot.core.digest import digest_bytes
from ingot.core.errors import EngineError, IngotError
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.answer import Answer, GivenUp, Worker
from ingot.serve.jobs.ends import End, Ends
from ingot.serve.jobs.job import JobState, Lease, StoreError
from ingot.serve.jobs.places import discard
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.jobs.store import JobStore
from ingot.serve.problems import RequestError
from ingot.serve.warmup import warm_up
from ingot.serve.workers.nursery import libraries_of

log = logging.getLogger(__name__)

READY, IDLE, WORK, STOP, FAILED = "ready", "idle", "work", "stop", "failed: "
_POLL_S = 0.25  # how soon a job put by another program is seen without being told
_GRACE_S = 1.0  # what an engine call gets beyond its job's time before its process is ended
_HUNG_EXIT = 70
_FULL_PAUSE_S = 2.0  # how soon a disk that was full is tried again
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


@dataclass(slots=True)
class _Run:
    """One attempt in hand."""

    lease: Lease
    stop: threading.Event
    until: float
    began: float  # UTC seconds since 1970


@dataclass(frozen=True, slots=True)
class _Ended:
    lease: Lease
    began: float
    answer: Answer | None = None
    error: Exception | None = None


Link = Connection  # to the supervisor: words go both ways
Inbox: TypeAlias = "queue.SimpleQueue[str | _Ended]"


def run_instance(link: Link, endpoint: Endpoint, settings: AsyncSettings, owner: str) -> None:
    """Work through jobs until told to stop, or until whoever started this process is gone.

    Args:
        link: To the supervisor, which sends `WORK` and `STOP`; it gets `READY` after a real
            inference, `IDLE` when it could do more than there is, and `FAILED` with the reason if
            the model does not open.
        endpoint: What is served.
        settings: How.
        owner: Name of this process in the store, never used by another.
    """
    inbox: Inbox = queue.SimpleQueue()
    is_open = threading.Event()
    threading.Thread(target=listen, args=(link, inbox, is_open), daemon=True).start()
    with contextlib.ExitStack() as stack:
        try:
            session = settings.open_session(endpoint)
            warm_up(session, endpoint.model.signature, endpoint.version.config)
        except IngotError as error:  # the supervisor tells it to whoever started the endpoint
            link.send(f"{FAILED}{error}")
            return
        is_open.set()
        ends = Ends(endpoint)
        stack.callback(ends.close)
        store = stack.enter_context(
            contextlib.closing(settings.open_store(is_first=False, on_end=ends.note_unanswered))
        )
        pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="ingot-job")
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        worker = Worker(endpoint, session, settings)
        loop = _Loop(worker, store, pool, ends, owner=owner, tell=link.send, inbox=inbox)
        # who stops a whole group of processes wants each to finish what it holds
        signal.signal(signal.SIGTERM, lambda _number, _frame: loop.stop())
        loop.tell(READY)
        loop.run()


def listen(link: Link, inbox: "Inbox", is_open: threading.Event) -> None:
    """Pass on what the supervisor says; when it is gone, finish what is in hand and leave.

    Args:
        link: To the supervisor.
        inbox: Where its words go.
        is_open: Set once the model is loaded. Nobody waits for one that is still loading, and
            loading cannot be interrupted, so the process ends at once.
    """
    while True:
        try:
            inbox.put(link.recv())
        except (EOFError, OSError):
            if not is_open.is_set():
                os._exit(0)
            inbox.put(STOP)
            return


class _Loop:
    """Claims, hands to threads, keeps leases, and says how each attempt ended.

    One thread talks to the store. What happens elsewhere comes in through one queue: messages of
    the supervisor, and attempts that ended.
    """

    def __init__(
        self,
        worker: Worker,
        store: JobStore,
        pool: ThreadPoolExecutor,
        ends: Ends,
        *,
        owner: str,
        tell: Callable[[str], None],
        inbox: "Inbox",
    ) -> None:
        self._worker, self._store, self._pool, self._ends = worker, store, pool, ends
        self._owner, self._tell, self._inbox = owner, tell, inbox
        self._settings, self._endpoint = worker.settings, worker.endpoint
        self._runs: dict[str, _Run] = {}
        self._is_stopping = False
        self._is_idle = False
        self._next_beat = self._claim_after = 0.0
        self._owed: list[Lease] = []  # to be given back, once the store can be written

    def run(self) -> None:
        """Return when told to stop and nothing is in hand."""
        while not (self._is_stopping and not self._runs):
            self._give_back()
            self._claim()
            self._wait()
            self._beat()

    def stop(self) -> None:
        """Take nothing more, and end when nothing is in hand."""
        self._inbox.put(STOP)

    def tell(self, message: str) -> None:
        """Send a word to the supervisor, if it is still there."""
        with contextlib.suppress(OSError):
            self._tell(message)

    def _claim(self) -> None:
        free = self._settings.concurrency - len(self._runs)
        if self._is_stopping or time.monotonic() < self._claim_after:
            return
        if not free or any(r.lease.is_suspect for r in self._runs.values()):
            return
        try:
            leases = self._store.claim(
                self._endpoint.version.name, self._owner, n=free, lease_s=self._settings.lease_s
            )
        except StoreError as error:  # a full disk, say: what is in hand may still end well
            log.error("no job can be claimed: %s", error)
            time.sleep(_POLL_S)
            return
        for lease in leases:
            until = time.monotonic() + lease.timeout_s
            run = _Run(lease, threading.Event(), until, time.time())
            self._runs[lease.job] = run
            self._pool.submit(self._attempt, run)
        if len(leases) < free and not self._is_idle:
            self._is_idle = True
            self.tell(IDLE)

    def _wait(self) -> None:
        pause = (
            max(0.0, min(self._next_beat - time.monotonic(), _POLL_S)) if self._runs else _POLL_S
        )
        try:
            self._take(self._inbox.get(timeout=pause))
            while True:
                self._take(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _take(self, message: str | _Ended) -> None:
        if isinstance(message, _Ended):
            self._runs.pop(message.lease.job, None)
            self._settle(message)
        elif message == STOP:
            self._is_stopping = True
        else:
            self._is_idle = False

    def _beat(self) -> None:
        now = time.monotonic()
        if not self._runs or now < self._next_beat:
            return
        self._next_beat = now + self._settings.lease_s / 3
        leases = [run.lease for run in self._runs.values()]
        try:
            kept = self._store.heartbeat(leases, lease_s=self._settings.lease_s)
        except StoreError as error:  # a full disk, say: the leases may outlast it
            log.error("leases could not be extended: %s", error)
            return
        for run in self._runs.values():
            if run.lease.job not in kept or now > run.until:
                run.stop.set()
            if now > run.until + _GRACE_S:
                self._end_hung(run)

    def _end_hung(self, run: _Run) -> None:
        # a call into an engine cannot be interrupted, so the process goes, and its jobs with it
        log.error("job %s hangs in the engine; its instance ends", run.lease.job)
        words = f"An attempt must end within {run.lease.timeout_s:g} s; the engine did not. "
        self._fail_for(run.lease, words + "Raise timeout_s, or ask less at once.", 504, run.began)
        others = [other.lease for other in self._runs.values() if other is not run]
        self._store.release(others)
        self._ends.close()
        os._exit(_HUNG_EXIT)

    def _attempt(self, run: _Run) -> None:
        try:
            ended = _Ended(run.lease, run.began, self._worker.answer(run.lease, run.stop))
        except Exception as error:  # noqa: BLE001 # a thread's edge; `_fail` logs it
            ended = _Ended(run.lease, run.began, error=error)
        self._inbox.put(ended)

    def _settle(self, ended: _Ended) -> None:
        try:
            if ended.answer is not None:
                self._complete(ended, ended.answer)
            elif ended.error is not None:
                self._fail(ended, ended.error)
        except StoreError as error:  # the job is tried again, which is not held against it
            log.error("job %s: %s", ended.lease.job, error)
            self._owed.append(ended.lease)

    def _complete(self, ended: _Ended, answer: Answer) -> None:
        lease = ended.lease
        try:
            done = self._store.complete(
                lease, size_bytes=answer.size_bytes, note=answer.note, publish=answer.publish
            )
        except OSError as error:  # the result could not take its name
            self._fail(ended, error)
            return
        if done:
            self._ends.note(
                End(lease.job, lease.created, 200, lease.origin, answer.inputs_ref,
                    answer.output_ref, ended.began)
            )  # fmt: skip
        else:
            discard(lease, scratch=self._settings.staging)

    def _fail(self, ended: _Ended, error: Exception) -> None:
        lease = ended.lease
        discard(lease, scratch=self._settings.staging)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            self._wait_for_room(lease, error)
            return
        status, words, retry = explain(error)
        if status == 500:
            log.error("job %s, attempt %d", lease.job, lease.attempt, exc_info=error)
        self._fail_for(lease, words, status, ended.began, retry=retry)

    def _wait_for_room(self, lease: Lease, error: OSError) -> None:
        """Give a job back: that a disk is full is not its fault, and must not use up its tries."""
        log.error("job %s waits for room: %s", lease.job, error)
        self._claim_after = time.monotonic() + _FULL_PAUSE_S
        self._owed.append(lease)
        self._give_back()

    def _give_back(self) -> None:
        if not self._owed:
            return
        try:
            self._store.release(self._owed)
        except StoreError as error:
            log.error("jobs could not be given back yet: %s", error)
            return
        self._owed = []

    def _fail_for(
        self, lease: Lease, words: str, status: int, began: float, *, retry: bool = True
    ) -> None:
        """Say that an attempt failed; the end of its job, if it is one, is observed."""
        if self._store.fail(lease, words, retry=retry) is JobState.DEAD:
            ref = lease.input_uri or digest_bytes(lease.body or b"")
            self._ends.note(End(lease.job, lease.created, status, lease.origin, ref, began=began))


def explain(error: Exception) -> tuple[int, str, bool]:
    """Return status, words for the caller, and whether another attempt may help."""
    if isinstance(error, RequestError):
        return error.status, str(error), False
    if isinstance(error, GivenUp):
        return 504, str(error), True
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
        return 502, f"Input and output must be reachable; got: {reason}. Check the places.", True
    if isinstance(error, EngineError):
        return 500, "The engine failed on this job. The server's log says why.", True
    return 500, "The attempt failed inside the server. Its log says why.", True


def modules_of(endpoint: Endpoint, settings: AsyncSettings) -> list[str]:
    """Return the modules that a process is to have loaded before it becomes an instance."""
    late = libraries_of({endpoint.version.config.engine})
    late += ["psycopg", "ingot.serve.jobs.postgres_store"] if settings.database else []
    return [__name__, "ingot.runtime.engines", settings.opener_module, *late]
