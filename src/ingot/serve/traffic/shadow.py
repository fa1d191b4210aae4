"""Copies of requests to a version whose answers go to nobody."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ingot.core.digest import digest_bytes
from ingot.data.data import Array
from ingot.models.model import Signature
from ingot.observe.observation import Observation
from ingot.registry.version import Version
from ingot.runtime.engine import Session
from ingot.serve.problems import RequestError
from ingot.serve.protocol import Inference, decode_request, encode_binary_response, encode_response
from ingot.serve.room import Room
from ingot.serve.runner import Runner, run_session
from ingot.serve.traffic.agreement import Sums, read_answer
from ingot.serve.traffic.plan import Shadow
from ingot.serve.traffic.ticket import Exchange

log = logging.getLogger(__name__)

Record = Callable[[Observation], None]
SUFFIX = ".shadow"  # after the request id of the answer that was given
# Requests that reached a model. One refused before says nothing; 429 means that there is no room.
_WORTH = frozenset({200, 422, 500, 503, 504})


class _State(Protocol):
    """How a version is doing; `ingot.serve.state.State` is one."""

    in_flight: int
    sample: Mapping[str, Array] | None
    runner: Runner | None
    is_draining: bool
    room: Room


class Ran(Protocol):
    """A version that can be run; `ingot.serve.state.Served` is one."""

    session: Session | None

    @property
    def state(self) -> _State:
        """How it is doing."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The version that gets copies.

    Attributes:
        version: Which.
        signature: What it takes and gives.
        runs: Runs it.
        timeout_s: Seconds that a copy may take.
        finite_only: Whether its answers must be finite.
    """

    version: Version
    signature: Signature
    runs: Ran
    timeout_s: float
    finite_only: bool = False


class Copies:
    """Runs copies one after another in a thread of its own.

    A copy is dropped, and counted, when too many wait, when the server has no room for its body, or
    when the version is answering requests of its own: it never stands before one that somebody
    waits for. It does use the machine.

    Args:
        plan: How many, and how they are compared.
        watched: Who gets them.
        record: Where their observations go; None keeps none.
    """

    def __init__(self, plan: Shadow, watched: Watched, record: Record | None) -> None:
        self._plan, self._watched, self._record = plan, watched, record
        self._waiting, self._lock = 0, threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ingot-shadow")
        self.sums = Sums()

    def copy(self, observation: Observation, exchange: Exchange) -> None:
        """Take a request that was answered, or drop it; never waits. Call it on the event loop.

        Args:
            observation: Of the answer given.
            exchange: What came and what went.
        """
        if observation.status not in _WORTH or self._watched.runs.state.is_draining:
            return
        room, size = self._watched.runs.state.room, len(exchange.body) + len(exchange.answer)
        with self._lock:
            if self._waiting >= self._plan.most_waiting or not room.has_taken(size):
                self.sums.dropped += 1
                return
            self._waiting += 1
        loop = asyncio.get_running_loop()
        run = self._thread.submit(self._run, observation, exchange, loop)
        run.add_done_callback(self._ended)
        run.add_done_callback(lambda _: room.give(size))

    def compared(self) -> tuple[int, int]:
        """Return how many copies were compared, and how many of them agreed."""
        with self._lock:
            return self.sums.compared, self.sums.agreed

    def close(self) -> None:
        """End the thread; a call into an engine cannot be interrupted, so one that runs ends."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _ended(self, run: "Future[None]") -> None:
        with self._lock:
            self._waiting -= 1
        if not run.cancelled() and (error := run.exception()) is not None:
            self.sums.failed += 1
            log.warning("a copy for %s failed", self._watched.version.label, exc_info=error)

    def _run(
        self, observation: Observation, exchange: Exchange, loop: asyncio.AbstractEventLoop
    ) -> None:
        state = self._watched.runs.state
        if state.in_flight or state.is_draining:
            with self._lock:
                self.sums.dropped += 1
            return
        started = time.perf_counter()
        status, outputs, body = self._answer(exchange, loop)
        seconds = time.perf_counter() - started
        if self._record is not None:
            self._record(
                replace(
                    observation,
                    request_id=observation.request_id + SUFFIX,
                    version=self._watched.version.digest,
                    arm="shadow",
                    propensity=self._plan.share,
                    output_ref=digest_bytes(body) if body else "",
                    status=status,
                    latency_ms=seconds * 1e3,
                )
            )
        pair = (observation.status, status)
        given = read_answer(exchange) if pair == (200, 200) else {}
        with self._lock:
            self.sums.statuses[pair] = self.sums.statuses.get(pair, 0) + 1
            if pair == (200, 200):
                self.sums.add(given, outputs, self._plan.tolerance)

    def _answer(
        self, exchange: Exchange, loop: asyncio.AbstractEventLoop
    ) -> tuple[int, dict[str, Array], bytes]:
        """Return status, outputs and body, as the version would have answered."""
        watched = self._watched
        try:
            inference = decode_request(
                exchange.body, watched.signature,
                length=exchange.length, finite_only=watched.finite_only,
            )  # fmt: skip
            outputs = self._outputs(inference, loop)
            return 200, outputs, self._encode(outputs, inference)
        except RequestError as error:
            return error.status, {}, b""
        except TimeoutError:
            return 504, {}, b""
        except CancelledError:  # the server has stopped
            return 503, {}, b""
        except Exception:  # engines raise anything; a shadow that fails is what we want to know
            log.exception("%s failed on a copy", watched.version.label)
            return 500, {}, b""

    def _outputs(self, inference: Inference, loop: asyncio.AbstractEventLoop) -> dict[str, Array]:
        state, session = self._watched.runs.state, self._watched.runs.session
        if session is not None:
            return run_session(session, inference.feeds, state.sample)
        assert state.runner is not None
        # Any: the outputs by name
        call: Future[Any] = asyncio.run_coroutine_threadsafe(
            _awaited(state.runner, inference), loop
        )
        try:
            found: dict[str, Array] = call.result(self._watched.timeout_s)
        except TimeoutError:
            call.cancel()
            raise
        return found

    def _encode(self, outputs: Mapping[str, Array], inference: Inference) -> bytes:
        model, number = self._watched.version.name, str(self._watched.version.number)
        if inference.as_bytes:
            return encode_binary_response(outputs, inference, model=model, version=number)[0]
        return encode_response(outputs, inference, model=model, version=number)


async def _awaited(runner: Runner, inference: Inference) -> dict[str, Array]:
    return await runner.run(inference.feeds)
