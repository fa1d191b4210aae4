"""The hot path: one inference request, from its first byte to its observation.

It is plain ASGI below the router: headers are read once, the body is read once, and digests and
label look-ups are done once. What it costs is measured by `benchmarks/_endpoint_overhead.py`.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from ingot.core.digest import digest_bytes
from ingot.core.names import suggest
from ingot.observe.observation import Observation
from ingot.registry.version import Version
from ingot.runtime.engine import Session
from ingot.serve.endpoint import Endpoint
from ingot.serve.metrics import Metrics
from ingot.serve.protocol import RequestError, decode_request, encode_error, encode_response

log = logging.getLogger(__name__)

# Any below is the ASGI specification's: scopes and messages are open mappings.
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

CLIENT_GONE = 499  # nginx's status for a caller that hung up; it is observed, never sent
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_READ = (
    b"content-length", b"content-encoding", b"x-request-id",
    b"ingot-unit", b"ingot-episode", b"ingot-step",
)  # fmt: skip


class ObservationSink(Protocol):
    """Where observations go; `ingot.observe.log.ObservationLog` is one."""

    @property
    def dropped(self) -> int:
        """How many could not be kept."""
        ...

    def record(self, observation: Observation) -> None:
        """Take one without waiting for the disk."""
        ...


def _pool() -> ThreadPoolExecutor:
    # Two: the engine has its own threads, so more calls at once only compete with each other
    return ThreadPoolExecutor(2, thread_name_prefix="ingot-infer")


@dataclass(slots=True)
class State:
    """What an application and whoever runs it know of each other.

    Attributes:
        is_warm: A real inference has succeeded.
        is_draining: The endpoint was told to stop.
        in_flight: Inference requests being answered.
        inline_bytes: Request bodies up to this size are answered on the event loop, larger ones
            in a thread; see `ingot.serve.warmup.inline_limit`.
        pool: The threads.
    """

    is_warm: bool = False
    is_draining: bool = False
    in_flight: int = 0
    inline_bytes: int = 0
    pool: ThreadPoolExecutor = field(default_factory=_pool)

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.is_warm and not self.is_draining


@dataclass(slots=True)
class _Call:
    """One request on its way through."""

    time: float
    started: float
    path: Mapping[str, str]
    method: str
    headers: dict[bytes, str]
    request_id: str = ""
    step: int = 0
    inputs_ref: str = ""


class InferRoute:
    """ASGI application behind both infer paths.

    Args:
        endpoint: What is served.
        session: Its open session.
        state: Shared with whoever runs the application.
        log: Where observations go.
        metrics: What is counted.
        clock: UTC seconds since 1970.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        session: Session,
        state: State,
        *,
        metrics: Metrics,
        log: ObservationSink | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._version, self._signature = endpoint.version, endpoint.model.signature
        self._limit = endpoint.max_body_bytes
        self._session, self._state, self._clock = session, state, clock
        self._metrics, self._log = metrics, log
        self._digest = endpoint.version.digest
        self._number = str(endpoint.version.number)
        self._headers = [
            (b"content-type", b"application/json"),
            (b"ingot-version", self._digest.encode()),
            (b"ingot-model", endpoint.version.model.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens is counted and observed."""
        headers = {k: v.decode("latin-1") for k, v in scope["headers"] if k in _READ}
        call = _Call(
            self._clock(), time.perf_counter(), scope["path_params"], scope["method"], headers
        )
        self._state.in_flight += 1
        status, body = (
            503,
            b"",
        )  # what a request gets that is cancelled when draining takes too long
        try:
            status, body = await self._answer(call, receive)
            if status != CLIENT_GONE:
                await self._send(send, call, status, body)
        finally:
            self._state.in_flight -= 1
            self._note(call, status, body)

    async def _answer(self, call: _Call, receive: Receive) -> tuple[int, bytes]:
        try:
            self._identify(call)
            self._admit(call)
            body = await self._body(call, receive)
            if body is None:
                return CLIENT_GONE, b""
            call.inputs_ref = digest_bytes(body)
            if len(body) <= self._state.inline_bytes:
                return 200, self._infer(body)
            loop = asyncio.get_running_loop()
            return 200, await loop.run_in_executor(self._state.pool, self._infer, body)
        except RequestError as error:
            return error.status, encode_error(str(error))
        except Exception:  # a process edge: engines raise anything, a request gets its answer
            log.exception("request %s failed", call.request_id)
            return 500, encode_error(
                f"The engine failed on request {call.request_id}. The server's log says why."
            )

    def _infer(self, body: bytes) -> bytes:
        inference = decode_request(body, self._signature)
        outputs = self._session.run(inference.feeds)
        return encode_response(outputs, inference, model=self._version.name, version=self._number)

    def _identify(self, call: _Call) -> None:
        given = call.headers.get(b"x-request-id", "")
        # an id that could not go back into a header or a log line is replaced, not repaired
        call.request_id = given if _KEY.fullmatch(given) else os.urandom(16).hex()
        for header in (b"ingot-unit", b"ingot-episode"):
            value = call.headers.get(header)
            if value and not _KEY.fullmatch(value):
                del call.headers[header]
                raise RequestError(
                    f"Header {header.decode()} must be 1 to 128 visible ASCII characters; "
                    f"got {len(value)}. Shorten or encode the key."
                )
        step = call.headers.get(b"ingot-step")
        if step is not None:
            if not (step.isascii() and step.isdigit() and len(step) < 16):
                raise RequestError(
                    f"Header ingot-step must be a whole number from 0 up; got {step[:32]!r}. "
                    "Send the position in the episode."
                )
            call.step = int(step)

    def _admit(self, call: _Call) -> None:
        if call.method != "POST":
            raise RequestError(
                f"Inference must be asked with POST; got {call.method}. Change the method.",
                status=405,
            )
        message = refuse_path(self._version, call.path)
        if message is not None:
            raise RequestError(message, status=404)
        if self._state.is_draining:
            raise RequestError(
                "The endpoint must be running to answer; it is stopping. Ask another replica, "
                "or again when it is back.",
                status=503,
            )
        encoding = call.headers.get(b"content-encoding", "identity")
        if encoding != "identity":
            raise RequestError(
                f"A body must be sent as it is; got content-encoding {encoding[:32]!r}. "
                "Turn compression off in the client.",
                status=415,
            )

    async def _body(self, call: _Call, receive: Receive) -> bytes | None:
        self._check_size(int(call.headers.get(b"content-length", "0")))
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            self._check_size(size)  # a body without a length, or with a false one, is caught here
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise RequestError(
                f"A body must be at most {self._limit:,} bytes; got {size:,}. Send fewer examples "
                "per request, or raise Endpoint.max_body_bytes.",
                status=413,
            )

    async def _send(self, send: Send, call: _Call, status: int, body: bytes) -> None:
        headers = [
            *self._headers,
            (b"x-request-id", call.request_id.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        if status == 405:
            headers.append((b"allow", b"POST"))
        if status in {413, 503}:  # the rest of the body is not read; a stopping server says goodbye
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _note(self, call: _Call, status: int, body: bytes) -> None:
        seconds = time.perf_counter() - call.started
        self._metrics.count(status, seconds)
        if self._log is None:
            return
        self._log.record(
            Observation(
                request_id=call.request_id,
                time=call.time,
                endpoint=self._version.name,
                version=self._digest,
                unit_key=call.headers.get(b"ingot-unit", ""),
                inputs_ref=call.inputs_ref,
                output_ref=digest_bytes(body) if body else "",
                status=status,
                latency_ms=seconds * 1e3,
                hour=int(call.time // 3600 % 24),
                episode_id=call.headers.get(b"ingot-episode", ""),
                step=call.step,
            )
        )


def refuse_path(version: Version, path: Mapping[str, str]) -> str | None:
    """Say what is wrong with the model or version that a path names, or None if it is served here.

    Args:
        version: What is served.
        path: `name` and perhaps `number`, from the path.
    """
    name, number = path["name"], path.get("number", str(version.number))
    if name != version.name:
        return f"No model is named {name!r} here. {suggest(name, [version.name])}"
    if number != str(version.number):
        served = suggest(number, [str(version.number)])
        return f"No version of {name!r} has number {number!r} here. {served}"
    return None


class FastPath:
    """Middleware that takes inferences past the router, which costs as much as reading a tensor.

    Args:
        app: The rest of the application.
        infer: What answers inferences.
        paths: Parameters of the exact paths that go past; the router takes every other spelling.
    """

    def __init__(
        self, app: Any, *, infer: InferRoute, paths: Mapping[str, Mapping[str, str]]
    ) -> None:
        self._app, self._infer, self._paths = app, infer, paths

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        params = self._paths.get(scope["path"]) if scope["type"] == "http" else None
        if params is None:
            await self._app(scope, receive, send)
        else:
            scope["path_params"] = params
            await self._infer(scope, receive, send)
