"""The workers of one model: calls are owned here until they are answered.

A call is handed to one worker. If that worker dies, the call goes to another one, ahead of all that
wait, so that no request is lost with a process; models whose calls must not be repeated say so and
their callers get a 503. A worker that keeps a call beyond the endpoint's time is taken to hang: it
is killed and replaced.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count

from ingot.core.errors import EngineError, ServeError
from ingot.data.data import Array
from ingot.runtime.cpu import thread_count
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Endpoint
from ingot.serve.problems import RequestError, late, refused, stopping
from ingot.serve.workers.nursery import Nursery
from ingot.serve.workers.process import Job, Process, connect
from ingot.serve.workers.wire import Answer, Call, Failure, Ready, frame, pack, unpack
from ingot.serve.workers.worker import TARGET, start_of

log = logging.getLogger(__name__)

MOST_SENDS = 3  # a call that ended so many workers is taken to be why
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_SETTLED_S = 30.0  # a worker that lived so long did not die of starting
_TICK_S = 0.05


class Pool:
    """Workers of one model, on the event loop that started them.

    Args:
        endpoint: What is served: its version, model, workers, timeout and whether its calls may be
            repeated.
        nursery: Where workers come from; the caller closes it.

    Attributes:
        resent: Calls that a dying worker left and another one got.
        restarts: Workers that were started in place of one that ended.
        trouble: Why the latest worker that ended before it was ready did; empty when one was since.
    """

    def __init__(self, endpoint: Endpoint, nursery: Nursery) -> None:
        self._label, self._size = endpoint.version.label, endpoint.workers
        self._timeout_s, self._may_repeat = endpoint.timeout_s, endpoint.is_idempotent
        config = shared_threads(endpoint.version.config, endpoint.workers)
        self._start, self._streams = frame(start_of(endpoint.model, config)), config.streams
        self._load_timeout_s = endpoint.load_timeout_s
        self._nursery = nursery
        self._processes: list[Process] = []
        self._waiting: deque[Job] = deque()
        self._numbers = count()
        self._failures = 0
        self._is_closing = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._spawning: set[asyncio.Task[None]] = set()
        self._first: asyncio.Future[Ready] | None = None
        self.resent = self.restarts = 0
        self.trouble = ""

    @property
    def slots(self) -> int:
        """Calls that run at a time when every worker is there."""
        return self._size * self._streams

    @property
    def ready(self) -> int:
        """Workers that have answered a real inference and live."""
        return sum(process.is_ready for process in self._processes)

    async def start(self) -> Ready:
        """Fork every worker and return what the slowest said once all have answered an inference.

        Raises:
            ServeError: A worker cannot serve the model, or ended before it could.
        """
        self._first = asyncio.get_running_loop().create_future()
        for _ in range(self._size):
            await self._spawn()
        self._watch()
        return await self._first

    async def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name.

        Raises:
            RequestError: The inputs cannot be answered (422), the call ended its workers (500) or
                its worker and must not be repeated (503), or hung (504).
            EngineError: The engine failed.
        """
        number = next(self._numbers)
        message = frame(Call(number, pack(feeds)))
        job = Job(number, message, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._dispatch()
        try:
            return await job.result
        except asyncio.CancelledError:
            with suppress(ValueError):  # a worker has it: its answer will find nobody
                self._waiting.remove(job)
            raise

    async def close(self) -> None:
        """End the workers, at once those that still have calls; what waits fails with 503."""
        self._is_closing = True
        for timer in self._timers:
            timer.cancel()
        for task in self._spawning:
            task.cancel()
        for process in tuple(self._processes):
            (process.kill if process.jobs else process.close)()
        while self._waiting:
            _fail(self._waiting.popleft(), stopping())

    def on_ready(self, process: Process, ready: Ready) -> None:
        """Take a worker into service."""
        log.info("worker %d of %s is ready", process.pid, self._label)
        self.trouble = ""
        self._dispatch()
        if self._first is not None and not self._first.done() and self.ready == self._size:
            self._first.set_result(ready)

    def on_free(self, process: Process) -> None:
        """Give work to a worker that answered."""
        del process
        self._dispatch()

    def on_result(self, job: Job, message: Answer | Failure) -> None:
        """Hand an answer to whoever waits for it."""
        if job.result.done():
            return
        if isinstance(message, Answer):
            job.result.set_result(unpack(message.outputs))
        elif message.is_refusal:
            _fail(job, refused(message.message))
        else:
            _fail(job, EngineError(message.message))

    def on_gone(self, process: Process) -> None:
        """Give the calls of a worker that ended to the others, and start a new one."""
        self._processes.remove(process)
        for job in reversed(process.jobs.values()):
            self._pass_on(job)
        if self._is_closing:
            return
        self._nursery.collect()
        if not process.was_ready:
            self.trouble = _never_ready(process)
        if self._first is not None and not self._first.done():
            self._first.set_exception(ServeError(self.trouble))
            return
        pause_s = self._pause_s(process)
        log.warning(
            "worker %d of %s is gone; a new one is started in %.1f s%s", process.pid, self._label,
            pause_s, f": {process.refusal}" if process.refusal else "",
        )  # fmt: skip
        self.restarts += 1
        self._later(pause_s, self._respawn)
        self._dispatch()

    def _pass_on(self, job: Job) -> None:
        if job.result.done():
            return
        if self._is_closing:
            _fail(job, stopping())
        elif not self._may_repeat:
            _fail(job, RequestError(
                "A request must be answered by the worker that began it; that worker ended, and "
                "this model's requests are not repeated. Check whether it took effect, then ask "
                "again.", status=503,
            ))  # fmt: skip
        elif job.sends >= MOST_SENDS:
            _fail(job, RequestError(
                f"A request must leave its worker alive; it ended {job.sends} of them. "
                "The server's log says how; do not send it again.", status=500,
            ))  # fmt: skip
        else:
            self.resent += 1
            self._waiting.appendleft(job)

    def _pause_s(self, process: Process) -> float:
        lived_s = asyncio.get_running_loop().time() - process.born
        if process.answered or (process.was_ready and lived_s > _SETTLED_S):
            self._failures = 0
            return 0.0
        self._failures += 1
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 16))

    def _dispatch(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._waiting:
            free = [process for process in self._processes if process.is_free]
            if not free:
                return
            job = self._waiting.popleft()
            if not job.result.done():
                min(free, key=lambda process: len(process.jobs)).send(job, now)

    def _watch(self) -> None:
        self._later(_TICK_S, self._watch)  # first: whatever happens below, the watch goes on
        self._nursery.collect()
        now = asyncio.get_running_loop().time()
        for process in tuple(self._processes):
            if not process.was_ready and now - process.born > self._load_timeout_s:
                self._give_up(process)
                continue
            hung = [j for j in process.jobs.values() if now - j.sent_at > self._timeout_s]
            if not hung:
                continue
            log.error("worker %d of %s hangs; it is killed", process.pid, self._label)
            for job in hung:
                _fail(job, late(self._timeout_s))
            process.kill()

    def _give_up(self, process: Process) -> None:
        log.error("worker %d of %s hangs in loading; it is killed", process.pid, self._label)
        process.refusal = (
            f"A worker must answer an inference within {self._load_timeout_s:g} s of its start; "
            f"process {process.pid} did not. Raise load_timeout_s if the model needs longer."
        )
        process.kill()

    def _respawn(self) -> None:
        task = asyncio.get_running_loop().create_task(self._spawn_again())
        self._spawning.add(task)
        task.add_done_callback(self._spawning.discard)

    async def _spawn_again(self) -> None:
        try:
            await self._spawn()
        except OSError as error:  # no memory or no processes left, for now
            self._failures += 1
            log.warning("a worker of %s cannot be started: %s", self._label, error)
            self._later(_LONGEST_PAUSE_S, self._respawn)

    async def _spawn(self) -> None:
        process, theirs = await connect(self, self._streams, start=self._start)
        self._processes.append(process)
        self._nursery.fork(TARGET, theirs)

    def _later(self, pause_s: float, act: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            if not self._is_closing:
                act()

        timer = asyncio.get_running_loop().call_later(pause_s, run)
        self._timers.add(timer)


def shared_threads(config: EngineConfig, workers: int) -> EngineConfig:
    """Return the configuration that each of several workers runs.

    0 threads means every core, which only one process can have: each worker gets its share. A
    number that was asked for, or measured, stays.

    Args:
        config: Of the version.
        workers: How many run beside each other.
    """
    if config.threads or workers < 2:
        return config
    return replace(config, threads=max(config.streams, thread_count(0) // workers))


def _never_ready(process: Process) -> str:
    if process.refusal:
        return process.refusal
    return (
        f"A worker must answer an inference before it serves; process {process.pid} ended before. "
        "The lines above in the log say why."
    )


def _fail(job: Job, error: Exception) -> None:
    if not job.result.done():
        job.result.set_exception(error)
