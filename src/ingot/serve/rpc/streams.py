"""Many requests in one call: `ModelStreamInfer`, which Triton adds to the protocol's service.

Texts are answered piece by piece as they grow; inferences once each, in the order of their
requests (Triton's `docs/user_guide/decoupled_models.md` and `src/grpc/stream_infer_handler.cc`).
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from ingot.serve.problems import RequestError
from ingot.serve.rpc.door import Answer, Door, Headers, deadline
from ingot.serve.rpc.messages import messages
from ingot.serve.rpc.texts import FINAL, broken, text_answers, text_request
from ingot.serve.rpc.translate import infer_answer

log = logging.getLogger(__name__)

# Any below: grpc is untyped, messages are classes made at run time, ASGI's are open mappings.
Put = Callable[[Any], Awaitable[None]]
_MOST = 64  # requests of one call at a time; those after them wait on the wire


class Stream:
    """The requests of one call, answered side by side.

    Args:
        door: What answers them.
        texts: Names of the models that write texts.
        context: Of the call.
    """

    def __init__(self, door: Door, texts: frozenset[str], context: Any) -> None:
        self._door, self._texts, self._context = door, texts, context
        self._ready: asyncio.Queue[Any] = asyncio.Queue(_MOST)
        self._room, self._gone = asyncio.Semaphore(_MOST), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, requests: AsyncIterator[Any]) -> None:
        """Answer every request; a caller who leaves ends what is being written for it."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while (answer := await self._ready.get()) is not None:
                await self._context.write(answer)
        finally:
            self._gone.set()
            reading.cancel()
            while not self._ready.empty():  # whoever waits for room in it must go on
                self._ready.get_nowait()

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        before: asyncio.Task[None] | None = None
        try:
            async for request in requests:
                await self._room.acquire()
                if request.model_name in self._texts:
                    task = asyncio.create_task(self._text(request))
                else:
                    task = before = asyncio.create_task(self._infer(request, before))
                self._tasks.add(task)
                task.add_done_callback(self._over)
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            await self._put(None)

    def _over(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._room.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request in a stream failed", exc_info=error)

    async def _put(self, message: Any) -> None:
        if not self._gone.is_set():
            await self._ready.put(message)

    async def _infer(self, request: Any, before: "asyncio.Task[None] | None") -> None:
        try:
            answer = await self._door.infer(request, self._context, _named(request))
            found = _whole(request, answer)
        except RequestError as error:
            found = broken(request, str(error))
        if before is not None:
            await asyncio.wait((before,))
        await self._put(found)

    async def _text(self, request: Any) -> None:
        try:
            path, body = text_request(request)
        except RequestError as error:
            await self._put(broken(request, str(error)))
            return
        answer = _Text(request, self._put)
        headers = (*deadline(request, self._context), *_named(request))
        await self._door.ask(
            self._context, "POST", path, body=body, headers=headers, answer=answer, gone=self._gone
        )
        if answer.status != 200:
            await self._put(broken(request, answer.words))
        elif answer.body:
            await answer.give(json.loads(answer.body))


class _Text(Answer):
    """An answer that is passed on as its events come."""

    def __init__(self, request: Any, put: Put) -> None:
        super().__init__()
        self._request, self._put = request, put

    async def take(self, message: Mapping[str, Any]) -> None:
        """Pass events on; keep anything else."""
        kind = self.headers.get(b"content-type", b"")
        if message["type"] != "http.response.body" or not kind.startswith(b"text/event-stream"):
            await super().take(message)
            return
        for row in message.get("body", b"").split(b"\n\n"):
            if row:
                await self.give(json.loads(row.removeprefix(b"data: ")))

    async def give(self, event: Mapping[str, Any]) -> None:
        """Pass an event on."""
        for message in text_answers(self._request, event):
            await self._put(message)


def _named(request: Any) -> Headers:
    """Return the request's own id for the log: that in the metadata is of the whole call."""
    return ((b"x-request-id", request.id.encode("latin-1", "replace")),)


def _whole(request: Any, answer: Answer) -> Any:
    if answer.status != 200:
        return broken(request, answer.words)
    found = messages()["ModelStreamInferResponse"](
        infer_response=infer_answer(answer.body, answer.headers)
    )
    found.infer_response.parameters[FINAL].bool_param = True
    return found
