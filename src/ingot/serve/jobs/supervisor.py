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

from ingot.core.errors import IngotError, ServeError
from ingot.core.units import show_number
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.decisions import DecisionLog
from ingot.serve.jobs.instance import FAILED, IDLE, READY, STOP, WORK, modules_of, run_instance
from ingot.serve.jobs.job import MAX_TIMEOUT_S
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.jobs.store import JobStore, backlog
from ingot.serve.workers.child import Child
from ingot.serve.workers.nursery import Nursery
from ingot.twin.policy import Decision, Memory, Seen

log = logging.getLogger(__name__)

_PERIOD_S = 0.9  # a second is promised, and a busy machine may be a little late
_LOOK_S = 0.05  # at zero instances, how soon a job put by another program is seen
_LOOK_AGAIN_S = 0.01
_KILLED_S = 5.0  # what the kernel may take to end a process that was killed
_LONGEST_BACK_OFF_S = 30.0
_FAILED_STARTS = 3  # after so many in a row the endpoint says that it is not ready


@dataclass(slots=True)
class _Instance:
    owner: str
    child: Child
    started: float
    is_ready: bool = False
    is_idle: bool = False  # has told that it could do more than there is
    is_gone: bool = False  # its link has ended, and so has it


class Supervisor:
    """Keeps as many instances as the policy says, in a thread of its own.

    It starts with one instance, which proves that the model answers. From then on at least one
    decision a second, and one at once when a job comes to an endpoint without instances; each is
    recorded with its reason. What a dead instance held goes back to the queue at once.

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
        self._failure = self._trouble = ""
        self._tick, self._look_again = 0.0, math.inf
        # an instance whose supervisor was killed still finishes what it holds
        self._nursery = Nursery(modules_of(endpoint, settings), grace_s=2 * MAX_TIMEOUT_S)
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
        return [i.child.pid for i in (*self._active, *self._leaving)]

    @property
    def is_ready(self) -> bool:
        """Whether an instance has answered a real inference, and starts do not keep failing."""
        return self._was_ready and self._failed_starts < _FAILED_STARTS and not self._is_stopping

    @property
    def trouble(self) -> str:
        """Why the latest instance that ended before it was ready did; empty if one was since."""
        return self._trouble

    def start(self) -> None:
        """Start, with one instance that must answer a real inference before this returns.

        Raises:
            ServeError: The model does not open or does not answer.
        """
        self._decisions.started(self._name, backlog=self._backlog())
        if not self._start_one():
            self._end_all(0.0)
            raise ServeError(self._trouble)
        probe = self._active[0]
        limit_s = self._endpoint.load_timeout_s
        is_heard = probe.child.link.poll(limit_s)
        message = self._hear(probe) if is_heard else f"nothing within {limit_s:g} s"
        if message != READY:
            self._end_all(0.0)
            reason = message.removeprefix(FAILED) or "no answer; the log says why"
            self._decisions.died(self._name, before=1, backlog=self._backlog(), reason=reason)
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
        if self._active or self._clock() < self._start_after:
            return False
        # while starts fail no job is accepted, so without a try now and then that would never end
        return self._failed_starts >= _FAILED_STARTS or bool(self._backlog())

    def _listen(self) -> bool:
        """Wait for a word or the next decision; return whether an instance has ended."""
        pause = max(0.0, min(self._tick, self._look_again) - self._clock())
        known = {i.child.link: i for i in (*self._active, *self._leaving)}
        heard = wait([self._ear, *known], timeout=pause if known else min(pause, _LOOK_S))
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
        return any(instance.is_gone for instance in known.values())

    def _hear(self, instance: _Instance) -> str:
        try:
            message = str(instance.child.link.recv())
        except (EOFError, OSError):
            instance.is_gone = True
            return ""
        if message == READY:
            instance.is_ready = self._was_ready = True
            self._failed_starts, self._trouble = 0, ""
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
        wanted = decision.instances
        if self._failed_starts >= _FAILED_STARTS:
            wanted = max(1, wanted)  # see `_must_wake`
        while len(self._active) < wanted and self._clock() >= self._start_after:
            self._start_one()
        while len(self._active) > decision.instances:
            # the youngest idle one first: it has least to lose
            order = sorted(range(len(self._active)), key=lambda i: (self._active[i].is_idle, i))
            leaver = self._active.pop(order[-1])
            self._leaving.append(leaver)
            _send(leaver, STOP)

    def _start_one(self) -> bool:
        owner = f"{os.getpid()}-{os.urandom(8).hex()}"
        try:
            child = Child(self._nursery, run_instance, self._endpoint, self._settings, owner)
        except (OSError, ServeError) as error:  # no memory or no processes left, for now
            log.error("%s: an instance cannot be started: %s", self._name, error)
            self._put_off(f"An instance must be started; got: {error}. Look at the machine.")
            return False
        self._active.append(_Instance(owner, child, self._clock()))
        return True

    def _bury(self) -> None:
        limit_s = self._endpoint.load_timeout_s
        for instance in (*self._active, *self._leaving):
            if not instance.is_ready and self._clock() > instance.started + limit_s:
                self._failure = f"{FAILED}it answered no inference within {limit_s:g} s"
                instance.child.kill()
        for group in (self._active, self._leaving):
            for instance in [i for i in group if i.is_gone]:
                before = len(self._active)
                group.remove(instance)
                instance.child.link.close()
                held = self._store.lapse(instance.owner)
                if group is self._active:
                    self._note_death(instance, before, held)
                elif held:
                    jobs = show_number(held, "job")
                    log.warning("an instance that was leaving died with %s", jobs)

    def _note_death(self, instance: _Instance, before: int, held: int) -> None:
        code = instance.child.exitcode
        in_hand = f"with {show_number(held, 'job')} in hand"
        when = in_hand if instance.is_ready else "before it was ready"
        reason = f"an instance ended by itself {when} (exit {code}) {self._failure}".rstrip()
        log.error("%s: %s", self._name, reason)
        self._decisions.died(self._name, before=before, backlog=self._backlog(), reason=reason)
        self._failure = ""
        if not instance.is_ready:
            self._put_off(reason)

    def _put_off(self, reason: str) -> None:
        self._trouble = reason
        self._failed_starts += 1
        pause = min(_LONGEST_BACK_OFF_S, 0.5 * 2.0 ** min(self._failed_starts, 16))
        self._start_after = self._clock() + pause

    def _backlog(self) -> int:
        return backlog(self._store.counts(self._name))

    def _end_all(self, drain_s: float) -> None:
        everyone = [*self._active, *self._leaving]
        for instance in everyone:
            _send(instance, STOP)
        until = self._clock() + drain_s
        self._see_gone(everyone, until)
        for instance in everyone:
            if not instance.is_gone:
                instance.child.kill()
        self._see_gone(everyone, self._clock() + _KILLED_S)
        for instance in everyone:
            try:
                self._store.lapse(instance.owner, blame=False)
            except IngotError as error:  # its leases run out by themselves
                log.error("%s", error)
            instance.child.link.close()
        self._active, self._leaving = [], []
        self._nursery.close()

    def _see_gone(self, instances: list[_Instance], until: float) -> None:
        while waiting := {i.child.link: i for i in instances if not i.is_gone}:
            heard = wait(list(waiting), timeout=max(0.0, until - self._clock()))
            if not heard:
                return
            for link in heard:
                self._hear(waiting[link])  # type: ignore[index] # these are all it was given


def _send(instance: _Instance, message: str) -> None:
    try:
        instance.child.link.send(message)
    except OSError:
        log.info("an instance is gone before it could be told to %s", message)
