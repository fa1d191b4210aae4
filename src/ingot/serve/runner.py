"""What runs a model for a request: its session, in a thread, or something elsewhere."""

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.runtime.engine import Session
from ingot.serve.problems import refused
from ingot.serve.warmup import still_answers

Feeds = Mapping[str, Array]
T = TypeVar("T")


class Runner(Protocol):
    """What runs a model elsewhere than on the event loop, or many requests at once."""

    @property
    def ready(self) -> int:
        """How many processes can answer now."""
        ...

    async def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return every output by name.

        Raises:
            RequestError: The request is refused; its status says why.
            EngineError: The engine failed.
        """
        ...


class Threads:
    """A few threads, and what still runs in them when nobody waits for it any more."""

    def __init__(self) -> None:
        # Two: the engine has its own threads, so more calls at once only compete with each other
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ingot-infer")
        self._calls: set[Future[Any]] = set()  # of any result

    @property
    def running(self) -> int:
        """Calls that have not ended: an engine cannot be interrupted when its caller has left."""
        return len(self._calls)

    async def run(self, act: Callable[..., T], *arguments: object) -> T:
        """Run a function in a thread and return its result."""
        # in the caller's context: who is traced goes along
        call = self._pool.submit(contextvars.copy_context().run, act, *arguments)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.wrap_future(call)

    def close(self) -> None:
        """End the threads; a call that runs is left to the end of the process."""
        self._pool.shutdown(wait=not self._calls, cancel_futures=True)


class ThreadRunner:
    """Runs a session of this process in threads.

    Args:
        session: Open.
        threads: Where it runs.
        sample: Inputs that it has answered.
    """

    ready = 1

    def __init__(self, session: Session, threads: Threads, sample: Feeds) -> None:
        self._session, self._threads, self._sample = session, threads, sample

    async def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return every output by name."""
        return await self._threads.run(run_session, self._session, feeds, self._sample)


def run_session(session: Session, feeds: Feeds, sample: Feeds | None) -> dict[str, Array]:
    """Return every output by name.

    Args:
        session: Open.
        feeds: Inputs that fit the signature.
        sample: Inputs that the session has answered; None if none are known.

    Raises:
        RequestError: The engine refuses these inputs and answers the sample (422).
        EngineError: The engine failed.
    """
    try:
        return session.run(feeds)
    except EngineError as error:
        raise blame(error, session, sample) from error


def blame(error: EngineError, session: Session, sample: Feeds | None) -> Exception:
    """Return the error to raise: of the request if the session still answers, else the engine's.

    Args:
        error: What the session raised.
        session: Open.
        sample: Inputs that it has answered; None if none are known.
    """
    if sample is not None and still_answers(session, sample):
        return refused(str(error))
    return EngineError(str(error))
