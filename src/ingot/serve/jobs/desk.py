"""The desk of an asynchronous endpoint: takes requests in, and knows what became of them."""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.answer import LINES
from ingot.serve.jobs.decisions import DecisionLog
from ingot.serve.jobs.disks import free_bytes
from ingot.serve.jobs.job import MAX_INLINE_BYTES, MAX_TIMEOUT_S, Job, NewJob, Placed, QuotaError
from ingot.serve.jobs.notify import check_url
from ingot.serve.jobs.places import check_input
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.jobs.store import JobStore
from ingot.serve.problems import RequestError
from ingot.serve.protocol import decode_request

T = TypeVar("T")

_BATCH = 256
_MAX_TTL_S = 30 * 86_400.0
_KEY_LENGTH = 255


_NONE = msgspec.Raw()


class JobRequest(msgspec.Struct):
    """What a caller sends: an infer request, or the place of one, and how it is to be run."""

    id: str = ""
    inputs: msgspec.Raw = _NONE
    input_uri: str | None = None
    ttl_s: float = 86_400.0
    timeout_s: float = 900.0
    notify: str = ""


_DECODER = msgspec.json.Decoder(JobRequest)


@dataclass(slots=True)
class _Asked:
    job: NewJob
    answer: "asyncio.Future[Placed]"


class JobDesk:
    """What the HTTP routes ask. One per server; used on its event loop only.

    Puts that arrive together share one commit, so the durable mode that waits for the disk waits
    once for all of them.

    Args:
        endpoint: What is served.
        settings: How.
        store: Where jobs are; the caller closes it.
        decisions: The record of scaling.
        wake: Told after jobs were accepted.
        is_ready: Says whether jobs are taken and would be answered.
        trouble: Says why not; empty if nothing is known.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: AsyncSettings,
        store: JobStore,
        decisions: DecisionLog,
        *,
        wake: Callable[[], None],
        is_ready: Callable[[], bool],
        trouble: Callable[[], str] = str,
    ) -> None:
        self.endpoint, self.settings, self.store = endpoint, settings, store
        self.decisions, self.is_ready, self.trouble = decisions, is_ready, trouble
        self._wake = wake
        self.is_draining = False
        self._waiting: list[_Asked] = []
        self._task: asyncio.Task[None] | None = None
        # two: one may wait for the disk while the other reads
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ingot-desk")

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.endpoint.version.name

    async def ask(self, call: Callable[..., T], *values: Any, **more: Any) -> T:
        """Call the store in a thread; Any is what the call takes."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: call(*values, **more))

    def need_room(self) -> None:
        """Refuse what may not find room to end.

        Raises:
            RequestError: The disk of the jobs, or of their results, is as good as full (507).
        """
        least = self.settings.min_free_bytes
        if any(free_bytes(place) < least for place in self.settings.places):
            raise RequestError(
                f"A job must find {least:,} bytes of room on the server's disk; there are fewer. "
                "Nothing was accepted; ask again later, or let the operator make room.",
                status=507,
                wait_s=30.0,
            )

    def read(self, body: bytes, idempotency_key: str, origin: str = "") -> NewJob:
        """Turn a request into a job, or refuse it before anything is kept.

        A request that comes inline is checked against the model's signature here, so that its
        caller learns at once what is wrong with it.

        Args:
            body: The request.
            idempotency_key: The header, empty for none.
            origin: Who puts it and why; kept with the job.

        Raises:
            RequestError: It is not a request, does not fit the model, is too large, or names
                places that this endpoint does not use.
        """
        if len(body) > MAX_INLINE_BYTES:
            raise RequestError(
                f"A job's request must be at most {MAX_INLINE_BYTES:,} bytes; got {len(body):,}. "
                "Write it to a file and send its place as input_uri.",
                status=413,
            )
        try:
            asked = _DECODER.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise RequestError(
                f"The body must be an infer request or an object with input_uri; got: {error}. "
                'Send {"inputs": [...]} or {"input_uri": "..."}.'
            ) from error
        _check(asked, idempotency_key)
        job = str(uuid.uuid4())
        place, suffix, kept = "", ".json", body
        if asked.input_uri is None:
            signature = self.endpoint.model.signature
            decode_request(body, signature, finite_only=self.endpoint.finite_only)
        else:
            place = check_input(asked.input_uri, self.settings.roots)
            suffix = ".jsonl" if place.endswith(LINES) else ".json"
            kept = b""
        if asked.notify:
            check_url(asked.notify, self.settings.notify_networks)
        return NewJob(
            id=job,
            endpoint=self.name,
            output=f"{self.settings.output}/{self.name}/{job}{suffix}",
            body=None if place else kept,
            input_uri=place,
            idempotency_key=idempotency_key,
            caller_id=asked.id,
            ttl_s=asked.ttl_s,
            timeout_s=asked.timeout_s,
            notify=asked.notify,
            origin=origin,
        )

    async def put(self, job: NewJob) -> Placed:
        """Keep a job; when this returns it is durable.

        Raises:
            QuotaError: Too many wait.
            StoreError: It cannot be kept.
        """
        asked = _Asked(job, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_all())
        placed = await asked.answer
        self._wake()
        return placed

    async def retry(self, jobs: Sequence[str]) -> list[str]:
        """Put dead jobs back in the queue; return those that were dead.

        Raises:
            QuotaError: Too many would wait; none is put back.
            StoreError: They cannot be changed.
        """
        revived = await self.ask(self.store.requeue, jobs)
        if revived:
            self._wake()
        return revived

    async def get(self, job: str) -> Job | None:
        """Return a job of this endpoint, or None."""
        found = await self.ask(self.store.get, job)
        return found if found is not None and found.endpoint == self.name else None

    def close(self) -> None:
        """End the threads; what was accepted is in the store."""
        self._pool.shutdown(wait=True)

    async def _keep_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            try:
                await self._keep(batch)
            except QuotaError as error:
                if len(batch) == 1:
                    _refuse(batch, error)
                for asked in batch if len(batch) > 1 else ():  # some of them may still fit
                    await self._keep_alone(asked)
            except Exception as error:  # noqa: BLE001 # it is raised where the answer is awaited
                _refuse(batch, error)

    async def _keep(self, batch: list[_Asked]) -> None:
        placed = await self.ask(self.store.put, [asked.job for asked in batch])
        for asked, found in zip(batch, placed, strict=True):
            if not asked.answer.done():  # its caller may have hung up
                asked.answer.set_result(found)

    async def _keep_alone(self, asked: _Asked) -> None:
        try:
            await self._keep([asked])
        except Exception as error:  # noqa: BLE001 # it is raised where the answer is awaited
            _refuse([asked], error)


def _refuse(batch: list[_Asked], error: Exception) -> None:
    for asked in batch:
        if not asked.answer.done():
            asked.answer.set_exception(error)


def _check(asked: JobRequest, key: str) -> None:
    if bool(bytes(asked.inputs)) == (asked.input_uri is not None):
        raise RequestError(
            "A job must carry either inputs or input_uri; got both or neither. Send one of them."
        )
    for name, value, most in (
        ("ttl_s", asked.ttl_s, _MAX_TTL_S),
        ("timeout_s", asked.timeout_s, MAX_TIMEOUT_S),
    ):
        if not 0 < value <= most:
            raise RequestError(
                f"{name} must be above 0 and at most {most:,.0f} seconds; got {value:g}. Change it."
            )
    for name, text in (("Header idempotency-key", key), ("id", asked.id)):
        if len(text) > _KEY_LENGTH or not text.isprintable():
            raise RequestError(
                f"{name} must be at most {_KEY_LENGTH} printable characters; got {len(text)}. "
                "Shorten or encode it."
            )
