"""The supervisor: applies the scaling policy to instances, and buries those that die."""

import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ingot.core.errors import IngotError, ServeError
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.decisions import DecisionLog
from ingot.serve.jobs.instance import FAILED, IDLE, READY, STOP, WORK, preload_names, run_instance
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.jobs.store import JobStore, backlog
from ingot.twin.policy import Decision, Memory, Seen

log = logging.getLogger(__name__)

_PERIOD_S = 0.9  # a second is promised, and a busy machine may be a little late
_LOOK_S = 0.05  # at zero instances, how soon a job put by another program is seen
_LOOK_AGAIN_S = 0.01
_START_S = 300.0  # an instance that is not ready by then is ended
_LONGEST_BACK_OFF_S = 30.0
_FAILED_STARTS = 3  # after so many in a row the endpoint says that it is not ready


@dataclass(slots=True)
class _Instance:
    owner: str
    process: BaseProcess
    link: Connection
    started: float
    is_ready: bool = False
    is_idle: bool = False  # has told that it could do more than there is


class Supervisor:
    """Keeps as many instances as the policy says, in a thread of its own.

    At least one decision a second, and one at once when a job comes to an endpoint without
    instances; each is recorded with its reason. What a dead instance held goes back to the queue
    at once.

    Args:
        endpoint: What instances serve.
        settings: How, and the policy.
        store: Where the jobs are; the caller closes it.
        decisions: Where decisions are recorded; the caller closes it.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: AsyncSettings,
        store: JobStore,
        decisions: DecisionLog,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint, self._settings, self._store = endpoint, settings, store
        self._decisions, self._clock = decisions, clock
        self._name, self._memory = endpoint.version.name, Memory()
        self._active: list[_Instance] = []
        self._leaving: list[_Instance] = []
        self._failed_starts, self._start_after = 0, 0.0
        self._was_ready = False
        self._failure = ""
        self._tick, self._look_again = 0.0, math.inf
        self._context: Any = multiprocessing.get_context("forkserver")  # its Process is its own
        self._context.set_forkserver_preload(preload_names(endpoint, settings))
        self._ear, self._mouth = multiprocessing.Pipe(duplex=False)
        self._is_woken = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="ingot-supervisor", daemon=True)

    @property
    def instances(self) -> int:
        """Instances that run or are starting."""
        return len(self._active)

    @property
    def pids(self) -> list[int]:
        """Process ids of all instances, those that are leaving included."""
        return [i.process.pid or 0 for i in (*self._active, *self._leaving)]

    @property
    def is_ready(self) -> bool:
        """Whether an instance has answered a real inference, and starts do not keep failing."""
        return self._was_ready and self._failed_starts < _FAILED_STARTS and not self._is_stopping

    def start(self) -> None:
        """Start, with one instance that must answer a real inference before this returns.

        Raises:
            ServeError: The model does not open or does not answer.
        """
        self._start_one()
        probe = self._active[0]
        heard = wait([probe.link, probe.process.sentinel], timeout=_START_S)
        message = self._hear(probe) if probe.link in heard else ""
        if message != READY:
            self._end_all(0.0)
            reason = message.removeprefix(FAILED) or "no answer; the log says why"
            raise ServeError(
                f"A model must answer in an instance before its endpoint starts; got: {reason}"
            )
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be work; called for every accepted job, so it costs next to nothing.

        It never blocks: a word that was said and not heard yet is not said again.
        """
        if not self._is_woken:
            self._is_woken = True
            self._mouth.send_bytes(b"w")

    def stop(self, *, drain_s: float) -> None:
        """Let instances finish what they hold, for some time, and end them; jobs stay queued."""
        self._is_stopping = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()
        self._end_all(drain_s)

    def _run(self) -> None:
        self._tick = self._clock()
        is_due = True
        while not self._is_stopping:
            try:
                if is_due:
                    self._decide()
                if self._listen() or is_due:
                    self._bury()
                now = self._clock()
                is_due = now >= self._tick or self._must_wake()
            except Exception:  # a thread's edge: a store that cannot be read now may be read later
                log.exception("scaling of %s goes on", self._name)
                time.sleep(_LOOK_S)

    def _must_wake(self) -> bool:
        return not self._active and bool(self._backlog()) and self._clock() >= self._start_after

    def _listen(self) -> bool:
        """Wait for a word or the next decision; return whether an instance has ended."""
        pause = max(0.0, min(self._tick, self._look_again) - self._clock())
        known = {i.link: i for i in (*self._active, *self._leaving)}
        sentinels = [i.process.sentinel for i in known.values()]
        heard = wait(
            [self._ear, *known, *sentinels], timeout=pause if known else min(pause, _LOOK_S)
        )
        if self._ear in heard:
            self._is_woken = False  # before the word is taken: one said meanwhile is heard again
            self._ear.recv_bytes()
            self._hint()
        for link in heard:
            if isinstance(link, Connection) and link in known:
                self._hear(known[link])
        if self._clock() >= self._look_again:
            # a job may have come between the instance's look and its word that there is none; not
            # at once, for a job that is due and that it may not take would keep both talking
            self._look_again = math.inf
            if self._store.next_due_s(self._name) == 0.0:
                self._hint()
        return any(sentinel in heard for sentinel in sentinels)

    def _hear(self, instance: _Instance) -> str:
        try:
            message = str(instance.link.recv())
        except (EOFError, OSError):
            return ""
        if message == READY:
            instance.is_ready = self._was_ready = True
            self._failed_starts = 0
        elif message == IDLE:
            instance.is_idle = True
            self._look_again = self._clock() + _LOOK_AGAIN_S
        else:
            self._failure = message
            log.error("%s: an instance cannot start: %s", self._name, message)
        return message

    def _hint(self) -> None:
        for instance in self._active:
            if instance.is_idle:
                instance.is_idle = False
                _send(instance, WORK)

    def _decide(self) -> None:
        now = self._clock()
        if now >= self._tick:
            self._tick = max(self._tick + _PERIOD_S, now)
        seen = Seen(now, self._backlog(), len(self._active))
        decision = self._settings.policy.decide(seen, self._memory)
        self._memory = decision.memory
        self._decisions.record(self._name, decision)
        self._apply(decision)

    def _apply(self, decision: Decision) -> None:
        while len(self._active) < decision.instances and self._clock() >= self._start_after:
            self._start_one()
        while len(self._active) > decision.instances:
            # the youngest idle one first: it has least to lose
            order = sorted(range(len(self._active)), key=lambda i: (self._active[i].is_idle, i))
            leaver = self._active.pop(order[-1])
            self._leaving.append(leaver)
            _send(leaver, STOP)

    def _start_one(self) -> None:
        owner = f"{os.getpid()}-{os.urandom(8).hex()}"
        ours, theirs = multiprocessing.Pipe()
        process = self._context.Process(
            target=run_instance,
            args=(self._endpoint, self._settings, owner, theirs),
            name=f"ingot-{self._name}",
            daemon=True,
        )
        try:
            process.start()
        finally:
            theirs.close()
        self._active.append(_Instance(owner, process, ours, self._clock()))

    def _bury(self) -> None:
        for instance in self._active:
            if not instance.is_ready and self._clock() > instance.started + _START_S:
                instance.process.kill()
        for group in (self._active, self._leaving):
            for instance in [i for i in group if not i.process.is_alive()]:
                before = len(self._active)
                group.remove(instance)
                instance.link.close()
                held = self._store.lapse(instance.owner)
                if group is self._active:
                    self._note_death(instance, before, held)
                elif held:
                    log.warning("an instance that was leaving died with %d jobs", held)

    def _note_death(self, instance: _Instance, before: int, held: int) -> None:
        code = instance.process.exitcode
        when = f"with {held} jobs in hand" if instance.is_ready else "before it was ready"
        reason = f"an instance ended by itself {when} (exit {code}) {self._failure}".rstrip()
        log.error("%s: %s", self._name, reason)
        self._decisions.died(self._name, before=before, backlog=self._backlog(), reason=reason)
        self._failure = ""
        if not instance.is_ready:
            self._failed_starts += 1
            pause = min(_LONGEST_BACK_OFF_S, 0.5 * 2.0**self._failed_starts)
            self._start_after = self._clock() + pause

    def _backlog(self) -> int:
        return backlog(self._store.counts(self._name))

    def _end_all(self, drain_s: float) -> None:
        everyone = [*self._active, *self._leaving]
        for instance in everyone:
            _send(instance, STOP)
        until = self._clock() + drain_s
        for instance in everyone:
            instance.process.join(max(0.0, until - self._clock()))
            if instance.process.is_alive():
                instance.process.kill()
                instance.process.join()
            try:
                self._store.lapse(instance.owner, blame=False)
            except IngotError as error:  # its leases run out by themselves
                log.error("%s", error)
            instance.link.close()
        self._active, self._leaving = [], []


def _send(instance: _Instance, message: str) -> None:
    try:
        instance.link.send(message)
    except OSError:
        log.info("an instance is gone before it could be told to %s", message)
