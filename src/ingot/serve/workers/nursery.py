"""The server's hold on the template: forks workers, starts a new template when the old one died."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
from contextlib import suppress

from ingot.serve.workers.template import start_template
from ingot.serve.workers.wire import FROM_TEMPLATE, PREFIX, Inbox, Start, frame

log = logging.getLogger(__name__)


class Nursery:
    """Where workers come from. Used on one event loop.

    Args:
        engines: Names of the engines that the workers will open.
    """

    def __init__(self, engines: set[str]) -> None:
        self._engines = engines
        self._template: tuple[socket.socket, subprocess.Popen[bytes]] | None = None

    def fork(self, start: Start, connection: socket.socket) -> None:
        """Ask for a worker; it says hello on the other end of the connection, which is taken over.

        Raises:
            OSError: No template can be started.
        """
        with connection:
            if self._template is not None:
                with suppress(OSError):
                    self._send(self._template[0], start, connection)
                    return
                log.warning("the template of the workers ended; a new one is started")
                self._drop()
            self._template = start_template(self._engines)
            channel = self._template[0]
            asyncio.get_running_loop().add_reader(channel, self._listen, channel, Inbox())
            self._send(channel, start, connection)

    async def close(self) -> None:
        """End the template, and with it every worker that is still there."""
        if self._template is None:
            return
        _, process = self._template
        self._drop()
        await asyncio.to_thread(process.wait)

    def _send(self, channel: socket.socket, start: Start, connection: socket.socket) -> None:
        message = frame(start)
        # the descriptor travels with the length, which the template reads alone
        socket.send_fds(channel, [message[: PREFIX.size]], [connection.fileno()])
        channel.sendall(message[PREFIX.size :])

    def _listen(self, channel: socket.socket, inbox: Inbox) -> None:
        try:
            piece = channel.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            piece = b""
        if not piece:
            asyncio.get_running_loop().remove_reader(channel)
            return
        for body in inbox.feed(piece):
            ended = FROM_TEMPLATE.decode(body)
            code = os.waitstatus_to_exitcode(ended.status)
            if code:
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                log.warning("worker %d ended by %s", ended.pid, how)

    def _drop(self) -> None:
        assert self._template is not None
        channel, process = self._template
        self._template = None
        asyncio.get_running_loop().remove_reader(channel)
        channel.close()
        process.poll()  # collects what a template that died has left
