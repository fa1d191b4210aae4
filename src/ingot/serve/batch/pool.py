"""Processes that answer parts; one that dies is replaced, and its part is done again."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

from ingot.core.errors import IngotError, ServeError
from ingot.serve.batch.work import Done, Part, Work, Worker
from ingot.serve.workers.child import Child
from ingot.serve.workers.nursery import Nursery, libraries_of

TRIES = 3
log = logging.getLogger(__name__)


class Answers(Protocol):
    """What answers parts: a `Worker`, or a double of a test."""

    def answer(self, part: Part) -> Done:
        """Answer and write one part."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


Opener = Callable[[Work], Answers]


def answer_here(parts: Iterator[Part], work: Work, opener: Opener = Worker) -> Iterator[Done]:
    """Answer parts in this process, one after another; without a part nothing is opened."""
    worker: Answers | None = None
    try:
        for part in parts:
            worker = worker or opener(work)
            yield worker.answer(part)
    finally:
        if worker is not None:
            worker.close()


def answer_in_processes(
    parts: Iterator[Part], work: Work, processes: int, *, opener: Opener = Worker
) -> Iterator[Done]:
    """Answer parts in several processes, in whatever order they finish.

    A part is held in memory until it is done, one per process. After a failure no new part is
    begun; those under way are finished and given first.

    Args:
        parts: Taken one at a time, when a process is free.
        work: What every process opens first.
        processes: How many.
        opener: Makes the worker in its process; importable by name.

    Raises:
        ServeError: Every process that was given some part died.
        IngotError: What a worker raised.
    """
    pool = _Pool(_Forked(work, opener))
    try:
        yield from pool.run(parts, processes)
    finally:
        pool.stop()


@dataclass(slots=True)
class _Seat:
    """One process and the part it is at."""

    handle: Child
    part: Part | None = None


class _Pool:
    def __init__(self, crew: "_Forked") -> None:
        self._crew = crew
        self._seats: list[_Seat] = []
        self._again: list[Part] = []
        self._tries: dict[int, int] = {}
        self._failure: Exception | None = None

    def run(self, parts: Iterator[Part], processes: int) -> Iterator[Done]:
        while True:
            while (seat := self._idle(processes)) and (part := self._next(parts)) is not None:
                seat = seat if isinstance(seat, _Seat) else self._start()
                seat.part = part
                self._crew.give(seat.handle, part)
            busy = [seat for seat in self._seats if seat.part is not None]
            if not busy:
                break
            ready = self._crew.ready([seat.handle for seat in busy])
            for seat in (seat for seat in busy if seat.handle in ready):
                part, seat.part = seat.part, None
                assert part is not None
                found = self._crew.take(seat.handle)
                if found is None:
                    self._seats.remove(seat)
                if isinstance(found, Done):
                    self._tries.pop(part.index, None)
                    yield found
                elif isinstance(found, Exception):
                    self._failure = self._failure or found
                elif self._may_try_again(part):
                    self._again.append(part)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        self._crew.end([seat.handle for seat in self._seats])

    def _idle(self, processes: int) -> _Seat | bool:
        """Return an idle process, or whether one more may be started."""
        found = next((seat for seat in self._seats if seat.part is None), None)
        return found or len(self._seats) < processes

    def _next(self, parts: Iterator[Part]) -> Part | None:
        """Return a part to do again, or the next one; after a failure there is none."""
        if self._failure is not None:
            return None
        if self._again:
            return self._again.pop()
        try:
            return next(parts, None)
        except IngotError as error:  # the input breaks off: what is under way is finished first
            self._failure = error
            return None

    def _start(self) -> _Seat:
        seat = _Seat(self._crew.start())
        self._seats.append(seat)
        return seat

    def _may_try_again(self, part: Part) -> bool:
        tries = self._tries[part.index] = self._tries.get(part.index, 0) + 1
        if tries < TRIES:
            return True
        self._failure = self._failure or deadly(part)
        return False


def deadly(part: Part) -> ServeError:
    """Return what to say of a part that killed every process it was given to."""
    first, last = part.rows[0].number, part.rows[-1].number
    return ServeError(
        f"A process must live through its part; {TRIES} died one after another at rows "
        f"{first} to {last}. Look there for a row that the engine cannot bear, or give fewer "
        "--processes if memory ran out. Parts that are finished stay."
    )


class _Forked:
    """Processes of this machine, forked from one that has everything loaded."""

    def __init__(self, work: Work, opener: Opener) -> None:
        self._nursery = Nursery([__name__, *libraries_of({work.config.engine})])
        self._work, self._opener = work, opener

    def start(self) -> Child:
        return Child(self._nursery, serve_parts, self._work, self._opener)

    def give(self, child: Child, part: Part) -> None:
        try:
            child.link.send(part)
        except OSError:  # it is dead: its link is closed, which `wait` reports like an answer
            log.debug("process %s is gone before its part", child.pid)

    def ready(self, children: list[Child]) -> list[Child]:
        links = wait([child.link for child in children])
        return [child for child in children if child.link in links]

    def take(self, child: Child) -> object:
        try:
            return child.link.recv()
        except (EOFError, OSError):
            child.link.close()
            log.warning("process %s died (%s)", child.pid, child.exitcode)
            return None

    def end(self, children: list[Child]) -> None:
        for child in children:
            child.link.close()
            child.kill()
        self._nursery.close()


class Hand:
    """Answers parts one after another, in whatever process it is.

    Args:
        work: What it opens first.
        opener: Makes the worker.
    """

    def __init__(self, work: Work, opener: Opener) -> None:
        # The tokenizer takes every core unless told; the other processes have theirs
        os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, work.config.threads)))
        self._work, self._opener = work, opener
        self._worker: Answers | None = None

    def answer(self, part: Part) -> Done | Exception:
        """Return what was done, or why it was not."""
        try:
            self._worker = self._worker or self._opener(self._work)
            return self._worker.answer(part)
        except IngotError as error:
            return error
        except Exception as error:  # a process edge: the reason must reach the one who asked
            log.exception("part %s failed", part.index)
            return ServeError(
                f"A part must be answered or say which rows are bad; part {part.index} raised "
                f"{type(error).__name__}: {error}. Please report this."
            )


def serve_parts(link: Connection, work: Work, opener: Opener) -> None:
    """Answer parts, in a process of its own, until the link closes."""
    hand = Hand(work, opener)
    while True:
        try:
            part = link.recv()
        except (EOFError, OSError):
            return
        found = hand.answer(part)
        try:
            link.send(found)
        except OSError:  # nobody listens any more
            return
