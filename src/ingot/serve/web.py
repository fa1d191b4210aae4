"""The web server: uvicorn, with workers that start before it listens and callers that must hurry.

Imported only when an endpoint starts: it needs the extra `serve`.
"""

import asyncio
import logging
import socket
import time
from http import HTTPStatus
from typing import Any

import uvicorn

from ingot.serve.endpoint import Endpoint
from ingot.serve.problems import PROBLEM_TYPE, encode_problem
from ingot.serve.quick import QuickProtocol
from ingot.serve.routing import HUNG_UP
from ingot.serve.rpc.service import RpcServer
from ingot.serve.workers.workforce import Workforce

log = logging.getLogger(__name__)

_KEEP_ALIVE_S = 60
_SWEEP_S = 0.5
_MOST_HEAD_BYTES = 64 * 1024
_MOST_PIPELINED = 1000  # each takes about a kilobyte


class Server(uvicorn.Server):  # type: ignore[misc] # uvicorn is untyped here
    """One server of one address.

    Args:
        app: The ASGI application.
        endpoint: Its address and limits.
        workforce: Workers that must be ready before it listens.

    Attributes:
        failure: Why it could not start.
        rpc: The gRPC server beside it, if there is one.
    """

    def __init__(self, app: Any, endpoint: Endpoint, workforce: Workforce) -> None:
        tls = endpoint.tls
        super().__init__(
            uvicorn.Config(
                app,
                http=GuardedProtocol,
                lifespan="off",
                ws="none",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
                timeout_keep_alive=_KEEP_ALIVE_S,
                # what is still in flight then has had its drain_s already
                timeout_graceful_shutdown=1,
            )
        )
        self.failure: Exception | None = None
        self._workforce, self._read_s = workforce, endpoint.read_timeout_s
        self._sweeping: asyncio.Task[None] | None = None
        self.rpc = RpcServer(app, endpoint) if endpoint.grpc_port is not None else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the workers, then listen."""
        try:
            await self._workforce.start()
            if self.rpc is not None:
                await self.rpc.start()
        except Exception as error:  # noqa: BLE001 # carried to the thread that waits for us
            self.failure = error
            self.should_exit = True
            await self._workforce.close()
            return
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close connections, then end the workers."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self.rpc is not None:
            await self.rpc.stop()
        await super().shutdown(sockets)
        await self._workforce.close()

    async def _sweep(self) -> None:
        """Hang up on callers that send or read too slowly; nothing on a request's path."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for connection in tuple(self.server_state.connections):
                try:
                    connection.hang_up_if_slow(now, self._read_s)
                except Exception:  # one odd connection must not end the watch over all others
                    log.exception("a connection could not be looked at")


class GuardedProtocol(QuickProtocol):
    """A connection whose caller must send and read in time, and within a size.

    Time is looked at twice a second from outside, so that a request pays nothing for it.
    """

    _head_bytes = 0  # since a head ended or a body went on
    _owed: tuple[str, Any] | None = None  # what the caller was last seen to owe
    _owed_since = 0.0

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head or trailers without end are refused with 431."""
        self._progressed = False
        super().data_received(data)
        if self._progressed:
            self._head_bytes = 0
            return
        # a head, or what ends a body, or the rest of a body that was answered without being read
        self._head_bytes += len(data)
        if self._head_bytes > _MOST_HEAD_BYTES:
            self._refuse(431, f"Headers must take at most {_MOST_HEAD_BYTES:,} bytes. Send fewer.")

    def on_headers_complete(self) -> None:
        """Note that a head has ended."""
        self._progressed = True
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request whose caller hangs up, so that it keeps nobody else waiting."""
        cycle = self.cycle
        is_waiting = cycle is not None and not cycle.response_complete
        super().connection_lost(exc)
        if is_waiting and (hung_up := cycle.scope.get(HUNG_UP)) is not None:
            hung_up()

    def hang_up_if_slow(self, now: float, limit_s: float) -> None:
        """Close the connection if a request, or the reading of an answer, takes too long.

        One on which too many requests wait for those before them is closed too.

        Args:
            now: Monotonic seconds.
            limit_s: How long a caller may take for either.
        """
        if len(self.pipeline) > _MOST_PIPELINED:
            self.transport.abort()
            return
        owed = self._owes()
        if owed is None or owed != self._owed:
            self._owed, self._owed_since = owed, now
        elif now - self._owed_since > limit_s and owed[0] == "reading":
            self.transport.abort()
        elif now - self._owed_since > limit_s:
            self._refuse(408, f"A request must arrive within {limit_s:g} s; it did not. Hurry.")

    def _owes(self) -> tuple[str, Any] | None:
        cycle = self.cycle
        if self.flow.write_paused:
            return "reading", cycle
        if cycle is None or cycle.response_complete:
            is_idle = self.timeout_keep_alive_task is not None  # the next request has not begun
            return None if is_idle else ("head", cycle)
        return ("body", cycle) if cycle.more_body else None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the words of every other refusal."""
        del msg
        words = "A request must be HTTP/1.1; this one is not. Check the client."
        if self.parser.should_upgrade():
            words = (
                "A request with a body must not offer another protocol; this one does. Turn the "
                "upgrade off in the client (in Java: HttpClient.Version.HTTP_1_1)."
            )
        self._refuse(400, words)

    def _refuse(self, status: int, message: str) -> None:
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = encode_problem(status, message)
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {PROBLEM_TYPE}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
