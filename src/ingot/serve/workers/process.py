"""One worker process as its server sees it: a connection, and the calls it has not answered yet."""

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, cast

from ingot.data.data import Array
from ingot.serve.workers.wire import (
    FROM_WORKER,
    Answer,
    Failure,
    FromWorker,
    Hello,
    Inbox,
    Ready,
    Refused,
)

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """One call that the pool owns until it is answered.

    Attributes:
        number: Names it on the wire.
        message: The call as it is sent.
        result: What the caller waits for.
        sends: How many workers got it.
        sent_at: When the last of them did, on the event loop's clock, seconds.
    """

    number: int
    message: bytes
    result: "asyncio.Future[dict[str, Array]]"
    sends: int = 0
    sent_at: float = 0.0


class Owner(Protocol):
    """What a process tells the pool that owns it."""

    def on_ready(self, process: "Process", ready: Ready) -> None:
        """It answered a real inference."""

    def on_free(self, process: "Process") -> None:
        """It answered a call."""

    def on_gone(self, process: "Process") -> None:
        """It ended, or its connection did."""

    def on_result(self, job: Job, message: Answer | Failure) -> None:
        """A call of it was answered."""


@dataclass(slots=True, eq=False)
class Process(asyncio.Protocol):
    """One worker.

    Attributes:
        owner: The pool.
        slots: Calls it takes at a time.
        jobs: Calls it has and has not answered.
        pid: Its process, 0 until it said hello.
        is_ready: Whether it may get calls.
        was_ready: Whether it ever might.
        answered: How many calls it answered.
        refusal: Why it cannot serve, if it said so.
        born: When it was asked for, on the event loop's clock, seconds.
    """

    owner: Owner
    slots: int
    born: float
    jobs: dict[int, Job] = field(default_factory=dict)
    pid: int = 0
    is_ready: bool = False
    was_ready: bool = False
    answered: int = 0
    refusal: str = ""
    _inbox: Inbox = field(default_factory=Inbox)
    _transport: "asyncio.Transport | None" = None

    @property
    def is_free(self) -> bool:
        """Whether it can take one more call."""
        return self.is_ready and len(self.jobs) < self.slots

    def begin(self, start: bytes) -> None:
        """Tell it what to serve."""
        assert self._transport is not None
        self._transport.write(start)

    def send(self, job: Job, now: float) -> None:
        """Hand it a call."""
        assert self._transport is not None
        job.sends += 1
        job.sent_at = now
        self.jobs[job.number] = job
        self._transport.write(job.message)

    def kill(self) -> None:
        """End the process at once; `on_gone` follows when its connection is seen to close."""
        self.is_ready = False
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Close the connection, at which an idle worker ends by itself."""
        self.is_ready = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what arrived."""
        for body in self._inbox.feed(data):
            self._take(FROM_WORKER.decode(body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the pool."""
        del exc
        self.is_ready = False
        self.owner.on_gone(self)

    def _take(self, message: FromWorker) -> None:
        if isinstance(message, Hello):
            self.pid = message.pid
        elif isinstance(message, Refused):
            self.refusal = message.message
        elif isinstance(message, Ready):
            self.is_ready = self.was_ready = True
            self.owner.on_ready(self, message)
        else:
            self.answered += 1
            job = self.jobs.pop(message.call, None)
            if job is not None:
                self.owner.on_result(job, message)
            self.owner.on_free(self)


async def connect(owner: Owner, slots: int, *, start: bytes) -> tuple[Process, socket.socket]:
    """Return a process whose worker is yet to be forked, and the worker's end of its connection.

    Args:
        owner: Who is told what happens.
        slots: Calls it takes at a time.
        start: The message that it will find first.
    """
    ours, theirs = socket.socketpair()
    try:
        loop = asyncio.get_running_loop()
        _, process = await loop.create_unix_connection(
            lambda: Process(owner, slots, loop.time()), sock=ours
        )
        process.begin(start)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    return process, theirs
