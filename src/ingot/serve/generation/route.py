"""The route of a text: from its request to its observation, whole or piece by piece."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

from ingot.core.errors import DataError, EngineError
from ingot.registry.version import Version
from ingot.runtime.generation.request import Piece
from ingot.serve.access.gate import Gate
from ingot.serve.access.rates import RateLimits
from ingot.serve.generation.asking import Ask
from ingot.serve.generation.figures import Figures
from ingot.serve.generation.reply import Reply, Source
from ingot.serve.generation.writer import Text, Writer
from ingot.serve.infer import CLIENT_GONE, InferRoute
from ingot.serve.metrics import Series
from ingot.serve.problems import RequestError, late, problem_words, stopping
from ingot.serve.routing import Receive, Send
from ingot.serve.state import ObservationSink, Served

_INLINE_PROMPT_BYTES = 16 * 1024  # taking a longer prompt apart takes over a millisecond
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_NO_STORE = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))  # proxies, pass it on


class Dialect(Protocol):
    """How a protocol asks for a text and gets it.

    Attributes:
        invalid: Status of a request that does not fit the model.
    """

    invalid: int

    def read(self, body: bytes, source: Source, request_id: str) -> Ask:
        """Read a request.

        Raises:
            RequestError: It does not fit the protocol.
        """
        ...

    def begin(self, reply: Reply) -> bytes:
        """Return the events that a stream begins with."""
        ...

    def event(self, reply: Reply, piece: Piece) -> bytes:
        """Return the events of a piece."""
        ...

    def end(self, reply: Reply) -> bytes:
        """Return the events that a stream ends with."""
        ...

    def whole(self, reply: Reply) -> bytes:
        """Return the body with the whole text."""
        ...

    def failure(self, status: int, words: str) -> tuple[str, bytes]:
        """Return media type and body of a refusal."""
        ...

    def broken(self, status: int, words: str) -> bytes:
        """Return the event of a text that failed under way."""
        ...


class _Under:
    """A request for a text: what it is answered from, and what is left to end."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.text: Text | None = None
        self.reply: Reply | None = None
        self.watch: asyncio.Task[None] | None = None
        self.first_at = 0.0

    def close(self) -> None:
        if self.watch is not None:
            self.watch.cancel()
        if self.text is not None and (self.reply is None or not self.reply.is_over):
            self.text.cancel()


class TextRoute(InferRoute):
    """ASGI application that writes texts of one model in one protocol.

    Headers, keys, limits and the observation are those of an inference.

    Args:
        served: What is served, and its state.
        versions: Everything that is served beside it, itself included.
        writer: What writes.
        dialect: The protocol.
        figures: What is counted of texts.
        metrics: What is counted of requests.
        log: Where observations go.
        gate: Who may ask.
        limits: How often; None for any.
    """

    def __init__(
        self,
        served: Served,
        versions: Sequence[Version],
        *,
        writer: Writer,
        dialect: Dialect,
        figures: Figures,
        metrics: Series,
        log: ObservationSink | None = None,
        gate: Gate | None = None,
        limits: RateLimits | None = None,
    ) -> None:
        super().__init__(served, versions, metrics=metrics, log=log, gate=gate, limits=limits)
        self._writer, self._dialect, self._figures = writer, dialect, figures
        self._source = Source(
            self._version.name, self._number, self._digest, writer.tokenizer,
            frozenset(writer.ends),
        )  # fmt: skip

    # Any: a call of the module of inferences, as there
    async def _body(self, call: Any, receive: Receive) -> bytes | None:
        call.reply = _Under(receive)  # hanging up is noticed by whoever waits for the next message
        return await super()._body(call, receive)

    async def _in_time(self, call: Any, body: bytes) -> bytes:
        under: _Under = call.reply
        text = under.text = self._writer.text()
        under.watch = asyncio.create_task(_hang_up(under.receive, text))
        if len(body) <= _INLINE_PROMPT_BYTES:
            reply = self._begin(call, body, text)
        else:
            reply = await self._state.threads.run(self._begin, call, body, text)
        under.reply = reply
        await self._next(call, under)
        if reply.ask.is_stream:
            return b""
        while not reply.is_over:
            await self._next(call, under)
        reply.status = 200
        return self._dialect.whole(reply)

    def _begin(self, call: Any, body: bytes, text: Text) -> Reply:
        ask = self._dialect.read(body, self._source, call.request_id)
        try:
            self._writer.start(text, ask.prompt, ask.sampling, is_stream=ask.is_stream)
        except DataError as error:
            raise RequestError(str(error), status=self._dialect.invalid) from error
        except EngineError as error:
            raise RequestError(str(error), status=500) from error
        return Reply(self._source, ask, call.request_id, int(call.time), text)

    async def _next(self, call: Any, under: _Under) -> None:
        """Wait for the next pieces.

        Raises:
            RequestError: The text failed (424; 500 if all have), came too late (504), the server
                ends (503), or nobody waits for the text any more.
        """
        reply = under.reply
        assert reply is not None
        try:
            async with asyncio.timeout(call.left_s()):
                pieces = await reply.text.read()
        except TimeoutError:
            raise late(call.limit_s) from None
        except asyncio.CancelledError:  # by the server, after draining: its caller hears why
            raise stopping() from None
        except EngineError as error:
            raise RequestError(str(error), status=424 if self._writer.ready else 500) from error
        if not under.first_at:
            under.first_at = time.perf_counter()
            self._figures.first(under.first_at - call.started)
        before = reply.tokens
        reply.take(pieces)
        self._figures.written(reply.tokens - before)
        if pieces[-1].finish == "cancelled":
            raise RequestError("A caller must wait for its text; it hung up.", status=CLIENT_GONE)

    async def _send(self, send: Send, call: Any, status: int, body: bytes) -> None:
        under: _Under | None = call.reply
        if status == 200 and under is not None and under.reply is not None:
            reply = under.reply
            if reply.ask.is_stream:
                await self._stream(send, call, under, reply)
                return
        await super()._send(self._worded(send, status), call, status, self._refusal(status, body))

    async def _stream(self, send: Send, call: Any, under: _Under, reply: Reply) -> None:
        headers = [_EVENTS, *_NO_STORE, *self._headers]
        headers.append((b"x-request-id", call.request_id.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        dialect, events = self._dialect, self._dialect.begin(reply)
        try:
            while True:
                events += b"".join(dialect.event(reply, piece) for piece in reply.send())
                if events:
                    await _part(send, events)
                events = b""
                if reply.is_over:
                    break
                await self._next(call, under)
            reply.status, events = 200, dialect.end(reply)
        except RequestError as error:
            reply.status, events = error.status, dialect.broken(error.status, str(error))
        await _part(send, events, more=False)

    def _refusal(self, status: int, body: bytes) -> bytes:
        return body if status == 200 else self._dialect.failure(status, problem_words(body))[1]

    def _worded(self, send: Send, status: int) -> Send:
        """Return a sender that names the media type of the protocol's refusals."""
        if status == 200:
            return send
        kind = self._dialect.failure(status, "")[0].encode()

        async def worded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                others = [row for row in message["headers"] if row[0] != b"content-type"]
                message["headers"] = [(b"content-type", kind), *others]
            await send(message)

        return worded

    def _note(self, call: Any, status: int, body: bytes) -> None:
        under: _Under | None = call.reply
        if under is not None:
            under.close()
            reply = under.reply
            if reply is not None and reply.ask.is_stream and status == 200:
                status, body = reply.status, reply.written.encode()
            if reply is not None and reply.is_over:
                self._figures.over(reply.tokens - 1, time.perf_counter() - under.first_at)
        super()._note(call, status, body)


async def _hang_up(receive: Receive, text: Text) -> None:
    """Give a text up when its caller hangs up."""
    while (await receive())["type"] != "http.disconnect":
        continue
    text.cancel()


async def _part(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
