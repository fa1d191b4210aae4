"""The short way through the web server, for small requests that are answered on the spot.

What a request costs beside its model is mostly the machinery that lets an answer wait: a task, its
context, its events. A model that answers within a fraction of a millisecond needs none of it.
`benchmarks/results/serving.json` holds what either way costs.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingot.serve.routing import QuickRoute, Reply

_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CLOSE = (b"connection", b"close")
Found = tuple[QuickRoute, Mapping[str, str]]


class QuickProtocol(HttpToolsProtocol):  # type: ignore[misc] # uvicorn is untyped here
    """A connection that answers a whole request on the spot if its route can.

    Every other request goes uvicorn's way, from its first byte: one that comes in pieces, one that
    must wait, one whose caller reads too slowly or whose connection ends with it.
    """

    _route: QuickRoute | None = None  # of the request that is being read
    _path: Mapping[str, str] = {}
    _body = b""
    _progressed = False  # a head ended, or a body that is read went on, in the newest bytes

    # Any: uvicorn's own objects
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        state = getattr(self.app, "state", None)
        self._quick: Mapping[bytes, Found] = getattr(state, "quick", {})

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that is not whole at their end goes the long way."""
        super().data_received(data)
        if self._route is not None and not self.transport.is_closing():
            self._go_the_long_way()

    def on_headers_complete(self) -> None:
        """Choose the way."""
        found = self._quick.get(self.url)
        if found is not None and self._is_plain():
            self._route, self._path = found
            self._body = b""
        elif self.parser.should_upgrade():
            self._stay_with_this_protocol()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self._route is None:
            self._progressed = self._progressed or not self.cycle.response_complete
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """Answer, if the route can do it now."""
        if self._route is not None:
            reply = self._route.answer_now(self._path, self.headers, self._body)
            if reply is not None:
                self._route = None
                self._write(reply)
                return
            self._go_the_long_way()
        super().on_message_complete()

    def _is_plain(self) -> bool:
        parser, cycle = self.parser, self.cycle
        return (
            (cycle is None or cycle.response_complete)
            and not (self.flow.write_paused or self.expect_100_continue)
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
        )

    def _stay_with_this_protocol(self) -> None:
        """Answer a caller who offers another protocol, then hang up: the parser reads no more."""
        if self.parser.get_method() == b"POST":
            raise ValueError("the parser has taken the body for the other protocol")
        super().on_headers_complete()
        self.cycle.keep_alive = False

    def _go_the_long_way(self) -> None:
        self._route = None
        super().on_headers_complete()
        if self._body:
            super().on_body(self._body)

    def _write(self, reply: Reply) -> None:
        lines = [_LINES[reply.status]]
        for name, value in (*self.server_state.default_headers, *reply.headers):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n", reply.body)
        self.transport.write(b"".join(lines))
        self.on_response_complete()
        if _CLOSE in reply.headers:
            self.transport.close()
