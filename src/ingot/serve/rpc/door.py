"""How a gRPC request goes through the application of the web server, and what comes back."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from ingot.serve.binary import LENGTH_HEADER
from ingot.serve.endpoint import Endpoint
from ingot.serve.rpc.translate import infer_body, infer_path

log = logging.getLogger(__name__)

# Any below: grpc is untyped, messages are classes made at run time, ASGI's are open mappings.
App = Callable[..., Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
_PASSED = frozenset((
    "authorization", "x-request-id", "ingot-unit", "ingot-episode", "ingot-step",
    "ingot-timeout-ms", "traceparent", "tracestate",
))  # fmt: skip
_LONGEST_MS = 10**8


class Answer:
    """What the application answers, kept whole.

    Attributes:
        status: As over HTTP.
        headers: By name.
        body: What came of it.
    """

    def __init__(self) -> None:
        self.status: int = HTTPStatus.SERVICE_UNAVAILABLE
        self.headers: Mapping[bytes, bytes] = {}
        self.body = b""

    async def take(self, message: Mapping[str, Any]) -> None:
        """Take a message of the application."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message.get("body", b"")

    @property
    def words(self) -> str:
        """Why it is a refusal."""
        try:
            return str(json.loads(self.body)["detail"])
        except (ValueError, KeyError, TypeError):  # no problem document: a page that failed
            return "A request must get an answer; the server failed. Its log says why."


class Door:
    """The application, for callers over gRPC.

    Args:
        app: The web server's ASGI application.
        endpoint: Whether the address of a caller counts.
    """

    def __init__(self, app: App, endpoint: Endpoint) -> None:
        self._app, self._rate = app, endpoint.rate

    async def infer(self, request: Any, context: Any, headers: Headers = ()) -> Answer:
        """Send a `ModelInferRequest` through.

        Args:
            request: The message.
            context: Of the call.
            headers: In place of those in the call's metadata.

        Raises:
            RequestError: Its tensors do not add up.
        """
        body, size = infer_body(request)
        more = [(LENGTH_HEADER, b"%d" % size), *deadline(request, context), *headers]
        return await self.ask(context, "POST", infer_path(request), body=body, headers=more)

    async def ask(
        self,
        context: Any,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Headers = (),
        answer: Answer | None = None,
        gone: asyncio.Event | None = None,
    ) -> Answer:
        """Send a request through the application.

        Args:
            context: Of the call.
            method: As over HTTP.
            path: Quoted.
            body: The whole of it.
            headers: In place of those in the call's metadata.
            answer: Takes what is sent; one that keeps it if not given.
            gone: Set when nobody waits for the answer any more.
        """
        passed = [
            (name.encode(), value.encode("latin-1", "replace"))
            for name, value in context.invocation_metadata() or ()
            if name in _PASSED
        ]
        scope: dict[str, Any] = {
            "type": "http", "method": method, "path": unquote(path), "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "http_version": "2", "scheme": "http",
            "server": None, "client": self._client(context), "state": {},
            "headers": [*passed, (b"content-length", b"%d" % len(body)), *headers],
        }  # fmt: skip
        found = Answer() if answer is None else answer
        is_read = False

        async def receive() -> Mapping[str, Any]:
            nonlocal is_read
            if is_read and gone is not None:
                await gone.wait()
                return {"type": "http.disconnect"}
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self._app(scope, receive, found.take)
        except Exception:  # a page that failed has sent its 500 already
            log.exception("%s failed", path)
        return found

    def _client(self, context: Any) -> tuple[str, int] | None:
        """Return the address of a caller, where it counts: ipv4:HOST:PORT or ipv6:[HOST]:PORT."""
        if self._rate is None:
            return None
        kind, _, place = unquote(context.peer()).partition(":")
        host, _, port = place.rpartition(":")
        return (host.strip("[]"), int(port)) if kind in {"ipv4", "ipv6"} else None


def deadline(request: Any, context: Any) -> Headers:
    """Return when a request must be answered: the deadline of its call, or its own `timeout`.

    Args:
        request: Its parameter `timeout` is in microseconds, as Triton's clients send it.
        context: Of the call.
    """
    left_s, limits = context.time_remaining(), []
    if left_s is not None:
        limits.append(left_s * 1e3)
    if "timeout" in request.parameters and request.parameters["timeout"].int64_param > 0:
        limits.append(request.parameters["timeout"].int64_param / 1e3)
    shortest = min(limits, default=_LONGEST_MS)
    if shortest >= _LONGEST_MS:
        return ()
    return ((b"ingot-timeout-ms", b"%d" % max(1, int(shortest))),)
