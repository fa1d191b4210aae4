"""Streams that keep pages up to date: bounded, silent when nothing changes, ended at drain."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from ingot.serve.console.page import Content
from ingot.serve.console.rendering import encode
from ingot.serve.problems import RequestError

log = logging.getLogger(__name__)

MOST_LISTENERS = 16
TICK_S = 2.0
_LOOK_S = 0.2  # how soon a stream notices that the server drains
_BEAT_S = 15.0
_OVERLAP_S = 30.0


@dataclass(slots=True)
class Listeners:
    """How many streams are open; each costs a rendering every `TICK_S` seconds."""

    count: int = 0

    def check(self) -> None:
        """Refuse one more than there may be.

        Raises:
            RequestError: With status 503; the page is still there for a look.
        """
        if self.count >= MOST_LISTENERS:
            raise RequestError(
                f"At most {MOST_LISTENERS} pages may be live; so many are. Close one, or load the "
                "page again for new figures.",
                status=503,
            )


@dataclass(slots=True)
class Live:
    """One page, told again and again to one visitor.

    Attributes:
        read: Makes its content, with charts since a time; raises once the visitor may not see it.
        render: Makes the HTML of the part that changes.
        is_draining: Says whether the server stops.
        listeners: Where it is counted.
        tick_s: Seconds between two looks.
    """

    read: Callable[[float], Awaitable[Content]]
    render: Callable[[Content], str]
    is_draining: Callable[[], bool]
    listeners: Listeners
    tick_s: float = TICK_S

    async def events(self) -> AsyncIterator[bytes]:
        """Give a message with HTML and an event `charts` with new points, when there are any."""
        self.listeners.count += 1
        try:
            async for event in self._events():
                yield event
        except RequestError as error:  # its session has ended: the page says so when it is loaded
            yield b"event: over\n" + _data(str(error))
        except Exception:  # the stream's edge: the head is sent, so no status can say it
            log.exception("a live page has ended")
        finally:
            self.listeners.count -= 1

    async def _events(self) -> AsyncIterator[bytes]:
        yield b"retry: 3000\n: hello\n\n"
        # the browser reads what was before from the page's JSON, and drops what it has from there
        since = time.time() - _OVERLAP_S
        shown, silent_s = "", 0.0
        while not self.is_draining():
            content = await self.read(since)
            html = self.render(content)
            if html != shown:
                shown, silent_s = html, 0.0
                yield _data(html)
            if news := [chart for chart in content.charts if chart.times]:
                since = max(chart.times[-1] for chart in news)
                yield b"event: charts\n" + _data(encode(news).decode())
            if silent_s >= _BEAT_S:
                silent_s = 0.0
                yield b": still here\n\n"
            await self._pause()
            silent_s += self.tick_s

    async def _pause(self) -> None:
        left_s = self.tick_s
        while left_s > 0 and not self.is_draining():
            await asyncio.sleep(min(_LOOK_S, left_s))
            left_s -= _LOOK_S


def _data(text: str) -> bytes:
    # every kind of line end would end the field; a browser puts them back as one
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines).encode() + b"\n"
