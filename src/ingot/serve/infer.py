"""The hot path: one inference request, from its first byte to its observation.

It is plain ASGI below the router: headers are read once, the body is read once, and digests and
label look-ups are done once. What it costs is measured by `benchmarks/_endpoint_overhead.py`.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.core.digest import digest_bytes
from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.observe.observation import Observation
from ingot.registry.version import Version
from ingot.serve.access.gate import Gate
from ingot.serve.access.rates import RateLimits, address_of
from ingot.serve.binary import LENGTH_HEADER
from ingot.serve.labels import KEY, bad_key, read_step
from ingot.serve.metrics import Series
from ingot.serve.problems import (
    PROBLEM_TYPE,
    RequestError,
    crowded,
    encode_problem,
    late,
    stopping,
)
from ingot.serve.protocol import (
    Inference,
    decode_request,
    encode_binary_response,
    encode_response,
)
from ingot.serve.room import SMALL_BYTES
from ingot.serve.routing import HUNG_UP, Headers, Receive, Reply, Scope, Send, refuse_path
from ingot.serve.runner import Runner, blame
from ingot.serve.state import ObservationSink, Served
from ingot.serve.traffic.ticket import MAIN, TICKET, Exchange, Ticket

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # nginx's status for a caller that hung up; it is observed, never sent
_MILLISECONDS = re.compile(r"[1-9]\d{0,8}")
_READ = frozenset((
    b"content-length", b"content-encoding", b"x-request-id",
    b"ingot-unit", b"ingot-episode", b"ingot-step", b"ingot-timeout-ms",
    LENGTH_HEADER,
))  # fmt: skip
_JSON = (b"content-type", b"application/json")
_BYTES = (b"content-type", b"application/octet-stream")
_PROBLEM = (b"content-type", PROBLEM_TYPE.encode())
_CLOSE, _RETRY = (b"connection", b"close"), (b"retry-after", b"1")
_MORE_HEADERS = {
    401: ((b"www-authenticate", b"Bearer"), _CLOSE),  # the body is not read, nor that of a 403
    403: (_CLOSE,),
    405: ((b"allow", b"POST"),),
    413: (_CLOSE,),  # the rest of the body is not read
    429: (_RETRY,),
    503: (_CLOSE, _RETRY),  # a stopping server says goodbye
}
_INLINE_CODEC_BYTES = 64 * 1024  # reading or writing more JSON than this takes over a millisecond


@dataclass(slots=True)
class _Call:
    """One request on its way through."""

    time: float
    started: float
    path: Mapping[str, str]
    method: str
    headers: dict[bytes, str]
    limit_s: float
    ticket: Ticket
    body: bytes = b""
    held: int = 0  # bytes of the room that it takes
    request_id: str = ""
    step: int = 0
    inputs_ref: str = ""
    client: str = ""
    json_bytes: int | None = None  # of an answer that has tensors after the JSON
    retry_after: str | None = None
    limit: asyncio.Timeout | None = None  # while it waits for its answer
    is_gone: bool = False
    reply: Any = None  # of a route that writes texts: what it has written so far

    def left_s(self) -> float:
        """Return the seconds in which it must still be answered."""
        return self.limit_s - (time.perf_counter() - self.started)

    def hang_up(self) -> None:
        """Wait no longer: nobody reads the answer, and others may be waiting for their turn."""
        self.is_gone = True
        if self.limit is not None:
            self.limit.reschedule(asyncio.get_running_loop().time())


class InferRoute:
    """ASGI application behind both infer paths of one model.

    Args:
        served: What is served, its state, and its session if it runs in this process.
        versions: Everything that is served beside it, itself included, for paths that name neither.
        metrics: What is counted.
        log: Where observations go.
        gate: Who may ask.
        limits: How often; None for any.
        pinned: Ticket of requests that are not dealt but name the version; it counts as its own
            where requests are dealt at all.
        clock: UTC seconds since 1970.
    """

    def __init__(
        self,
        served: Served,
        versions: Sequence[Version],
        *,
        metrics: Series,
        log: ObservationSink | None = None,
        gate: Gate | None = None,
        limits: RateLimits | None = None,
        pinned: Ticket = MAIN,
        clock: Callable[[], float] = time.time,
    ) -> None:
        endpoint = served.endpoint
        self._version, self._signature = endpoint.version, endpoint.model.signature
        self._versions = versions
        self._limit, self._timeout_s = endpoint.max_body_bytes, endpoint.timeout_s
        self._most, self._finite_only = endpoint.max_waiting, endpoint.finite_only
        self._session, self._state, self._clock = served.session, served.state, clock
        self._metrics, self._log, self._gate, self._limits = metrics, log, gate, limits
        self._read = _READ if gate is None else _READ | {b"authorization"}
        self._pinned, self._is_dealt = pinned, pinned is not MAIN
        self._digest = endpoint.version.digest
        self._number = str(endpoint.version.number)
        self._headers = [
            (b"ingot-version", self._digest.encode()),
            (b"ingot-model", endpoint.version.model.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens is counted and observed."""
        found = scope.get(TICKET, self._pinned) if self._is_dealt else MAIN
        call = self._call(scope["path_params"], scope["method"], scope["headers"], found)
        self._state.in_flight += 1
        # what a request gets that is cancelled when draining takes too long
        status, body = 503, b""
        try:
            status, body = await self._answer(call, scope, receive)
            if status != CLIENT_GONE:
                await self._send(send, call, status, body)
        finally:
            self._state.in_flight -= 1
            self._state.room.give(call.held)
            self._note(call, status, body)

    def answer_now(self, path: Mapping[str, str], headers: Headers, body: bytes) -> Reply | None:
        """Answer a small request whose caller shows a key; None for every other.

        Nothing has been counted or run when it returns None.

        Args:
            path: `name` and perhaps `number`, from the path.
            headers: Of the request, names in lower case.
            body: The whole of it.
        """
        state, caller = self._state, None
        if state.runner is not None or len(body) > min(state.inline_bytes, self._limit):
            return None
        call = self._call(path, "POST", headers, self._pinned)
        try:
            self._identify(call)
            if self._gate is not None:
                proof = call.headers.pop(b"authorization", "")
                caller = self._gate.admit_key(proof, "infer", path["name"])
                if caller is None:
                    return None
                call.client = caller.name
            self._admit(call)
            if self._limits is not None:
                if caller is None:
                    return None  # the long way knows the address
                self._limits.take(caller, "")
        except RequestError:
            return None
        call.inputs_ref = digest_bytes(body)
        try:
            status, answer = 200, self._infer(call, body)
        except Exception as error:  # noqa: BLE001 # logged where the answer is made
            status, answer = _failed(call, error)
        self._note(call, status, answer)
        return Reply(status, self._reply_headers(call, status, len(answer)), answer)

    def _call(
        self, path: Mapping[str, str], method: str, headers: Headers, ticket: Ticket
    ) -> _Call:
        read = self._read
        known = {k: v.decode("latin-1") for k, v in headers if k in read}
        now, limit_s = time.perf_counter(), self._timeout_s
        return _Call(self._clock(), now, path, method, known, limit_s, ticket)

    # Any: an ASGI scope is an open mapping
    async def _answer(self, call: _Call, scope: Any, receive: Receive) -> tuple[int, bytes]:
        try:
            self._identify(call)
            caller = None
            if self._gate is not None:
                proof = call.headers.pop(b"authorization", "")
                caller = await self._gate.admit(proof, "infer", call.path["name"])
                call.client = caller.name
            if self._limits is not None:
                self._limits.take(caller, address_of(scope["client"]))
            self._admit(call)
            body = await self._body(call, receive)
            if body is None:
                return CLIENT_GONE, b""
            call.body, call.inputs_ref = body, digest_bytes(body)
            state = self._state
            is_small = len(body) <= state.inline_bytes and state.runner is None
            if is_small and call.left_s() > 0:
                return 200, self._infer(call, body)
            scope[HUNG_UP] = call.hang_up
            return 200, await self._in_time(call, body)
        except Exception as error:  # noqa: BLE001 # logged where the answer is made
            return _failed(call, error)

    async def _in_time(self, call: _Call, body: bytes) -> bytes:
        state = self._state
        if state.waiting >= self._most:
            raise crowded(self._most)
        state.waiting += 1
        try:
            async with asyncio.timeout(call.left_s()) as limit:
                call.limit = limit
                if state.runner is None:
                    return await state.threads.run(self._infer, call, body)
                return await self._elsewhere(state.runner, call, body)
        except TimeoutError:
            if call.is_gone:
                raise RequestError("The caller hung up.", status=CLIENT_GONE) from None
            if limit.expired():
                raise late(call.limit_s) from None
            raise
        finally:
            state.waiting -= 1
            call.limit = None

    async def _elsewhere(self, runner: Runner, call: _Call, body: bytes) -> bytes:
        run = self._state.threads.run
        if len(body) <= _INLINE_CODEC_BYTES:
            inference = self._decode(call, body)
        else:
            inference = await run(self._decode, call, body)
        outputs = await runner.run(inference.feeds)
        if sum(array.nbytes for array in outputs.values()) * 4 <= _INLINE_CODEC_BYTES:
            return self._encode(call, outputs, inference)
        return await run(self._encode, call, outputs, inference)

    def _infer(self, call: _Call, body: bytes) -> bytes:
        assert self._session is not None
        inference = self._decode(call, body)
        try:
            outputs = self._session.run(inference.feeds)
        except EngineError as error:
            raise blame(error, self._session, self._state.sample) from error
        return self._encode(call, outputs, inference)

    def _decode(self, call: _Call, body: bytes) -> Inference:
        length = call.headers.get(LENGTH_HEADER)
        return decode_request(body, self._signature, length=length, finite_only=self._finite_only)

    def _encode(self, call: _Call, outputs: Mapping[str, Array], inference: Inference) -> bytes:
        model, number = self._version.name, self._number
        if not inference.as_bytes:
            return encode_response(outputs, inference, model=model, version=number)
        body, call.json_bytes = encode_binary_response(
            outputs, inference, model=model, version=number
        )
        return body

    def _identify(self, call: _Call) -> None:
        given = call.headers.get(b"x-request-id", "")
        # an id that could not go back into a header or a log line is replaced, not repaired
        call.request_id = given if KEY.fullmatch(given) else os.urandom(16).hex()
        for header in (b"ingot-unit", b"ingot-episode"):
            value = call.headers.get(header)
            if value and not KEY.fullmatch(value):
                del call.headers[header]
                raise bad_key(header.decode(), value)
        step = call.headers.get(b"ingot-step")
        if step is not None:
            call.step = read_step(step)
        timeout = call.headers.get(b"ingot-timeout-ms")
        if timeout is not None:
            if not _MILLISECONDS.fullmatch(timeout):
                raise RequestError(
                    "Header ingot-timeout-ms must be a whole number of milliseconds from 1 up; "
                    f"got {timeout[:32]!r}. Send how long you will wait."
                )
            call.limit_s = min(call.limit_s, int(timeout) / 1e3)

    def _admit(self, call: _Call) -> None:
        if call.method != "POST":
            raise RequestError(
                f"Inference must be asked with POST; got {call.method}. Change the method.",
                status=405,
            )
        path = call.path
        if path["name"] != self._version.name or path.get("number", self._number) != self._number:
            raise RequestError(refuse_path(self._versions, path), status=404)
        if self._state.is_draining:
            raise stopping()
        encoding = call.headers.get(b"content-encoding", "identity")
        if encoding != "identity":
            raise RequestError(
                f"A body must be sent as it is; got content-encoding {encoding[:32]!r}. "
                "Turn compression off in the client.",
                status=415,
            )

    async def _body(self, call: _Call, receive: Receive) -> bytes | None:
        self._hold(call, int(call.headers.get(b"content-length", "0")))
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            self._hold(call, size)  # a body without a length, or with a false one, is caught here
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _hold(self, call: _Call, size: int) -> None:
        """Keep room for a body, or refuse it before more of it is read."""
        if size > self._limit:
            raise RequestError(
                f"A body must be at most {self._limit:,} bytes; got {size:,}. Send fewer examples "
                "per request, or raise the limit (--max-body-mb).",
                status=413,
            )
        if size > max(call.held, SMALL_BYTES):
            self._state.room.take(size - call.held)
            call.held = size

    async def _send(self, send: Send, call: _Call, status: int, body: bytes) -> None:
        headers = self._reply_headers(call, status, len(body))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _reply_headers(self, call: _Call, status: int, size: int) -> list[tuple[bytes, bytes]]:
        headers = [
            _JSON,
            *self._headers,
            (b"x-request-id", call.request_id.encode()),
            (b"content-length", b"%d" % size),
        ]
        if call.ticket.header is not None:
            headers.append(call.ticket.header)
        if status != 200:
            headers[0] = _PROBLEM
            if call.retry_after is None:
                headers += _MORE_HEADERS.get(status, ())
            else:
                headers.append((b"retry-after", call.retry_after.encode()))
        elif call.json_bytes is not None:
            headers[0] = _BYTES
            headers.append((LENGTH_HEADER, str(call.json_bytes).encode()))
        return headers

    def _note(self, call: _Call, status: int, body: bytes) -> None:
        seconds = time.perf_counter() - call.started
        ticket = call.ticket
        self._metrics.count(status, seconds, ticket.arm)
        if ticket.tally is not None:
            ticket.tally.count(status, seconds)
        if self._log is None and ticket.copier is None:
            return
        observation = Observation(
            request_id=call.request_id,
            time=call.time,
            endpoint=self._version.name,
            version=self._digest,
            unit_key=call.headers.get(b"ingot-unit", ""),
            arm=ticket.arm,
            propensity=ticket.propensity,
            inputs_ref=call.inputs_ref,
            output_ref=digest_bytes(body) if body else "",
            status=status,
            latency_ms=seconds * 1e3,
            client=call.client,
            hour=int(call.time // 3600 % 24),
            episode_id=call.headers.get(b"ingot-episode", ""),
            step=call.step,
        )
        if self._log is not None:
            self._log.record(observation)
        if ticket.copier is not None:
            length = call.headers.get(LENGTH_HEADER)
            ticket.copier.copy(observation, Exchange(call.body, length, body, call.json_bytes))


def _failed(call: _Call, error: Exception) -> tuple[int, bytes]:
    """Return status and body for a request that is refused, or on which the engine failed."""
    if isinstance(error, RequestError):
        call.retry_after = error.retry_after
        return error.status, b"" if call.is_gone else encode_problem(error.status, str(error))
    # a process edge: engines raise anything, a request gets its answer
    log.error("request %s failed", call.request_id, exc_info=error)
    return 500, encode_problem(
        500, f"The engine failed on request {call.request_id}. The server's log says why."
    )
