"""The hold on a template: has processes forked, and starts a new template when the old one died."""

import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress

from ingot.serve.workers.template import ORDER, REPORT, start_template

log = logging.getLogger(__name__)

# Each imports without starting a thread; see `template`.
_LIBRARIES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "native": "ingot_native"}
_MOST_CODES = 256  # of processes whose end nobody asked about


def libraries_of(engines: Iterable[str]) -> list[str]:
    """Return the modules that sessions of some engines need, to be imported ahead.

    Examples:
        >>> libraries_of({"onnxruntime", "of somebody else"})
        ['onnxruntime']
    """
    return sorted(_LIBRARIES[name] for name in set(engines) & _LIBRARIES.keys())


class Nursery:
    """Where the processes of one server or batch come from. Used by one thread at a time.

    A process is forked from a template that has imported what it needs and has no threads; it opens
    sessions itself. It ends with its caller, however that ends: its connection is then closed, at
    which it ends by itself, or is killed after the grace. It outlives its template.

    Args:
        modules: What the processes find imported; nothing that starts a thread.
        grace_s: Seconds that they get to end by themselves once the caller is gone.
    """

    def __init__(self, modules: Iterable[str], *, grace_s: float = 2.0) -> None:
        self._modules, self._grace_s = list(dict.fromkeys(modules)), grace_s
        self._template: tuple[socket.socket, subprocess.Popen[bytes]] | None = None
        self._codes: dict[int, int] = {}
        self._held = b""

    def fork(self, target: str, connection: socket.socket) -> None:
        """Have a process forked.

        Args:
            target: `package.module:function` that it calls with the connection as a socket.
            connection: Its end of a connection, which is taken over: nobody else holds it
                afterwards, so the other end reads an end of file when the process has ended.

        Raises:
            OSError: No template can be started.
        """
        with connection:
            if self._template is not None:
                with suppress(OSError):
                    self._send(self._template[0], target, connection)
                    return
                log.warning("the template of the processes ended; a new one is started")
                self._drop()
            self._template = start_template(self._modules, grace_s=self._grace_s)
            self._send(self._template[0], target, connection)

    def code(self, pid: int, *, patience_s: float = 0.0) -> int | None:
        """Return how a process ended: its exit code, or minus the number of the signal.

        Args:
            pid: A process of this nursery.
            patience_s: How long to wait until it is known.

        Returns:
            None if it has not ended, or if its template died before it did.
        """
        until = time.monotonic() + patience_s
        while True:
            self.collect()
            left_s = until - time.monotonic()
            if pid in self._codes or self._template is None or left_s <= 0:
                return self._codes.pop(pid, None)
            select.select([self._template[0]], [], [], left_s)

    def collect(self) -> None:
        """Take in what the template reported, and log the ends that nobody wanted."""
        while self._template is not None:
            try:
                piece = self._template[0].recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                piece = b""
            if not piece:
                self._drop()
                return
            self._held += piece
            whole = len(self._held) - len(self._held) % REPORT.size
            for pid, status in REPORT.iter_unpack(self._held[:whole]):
                self._note(pid, os.waitstatus_to_exitcode(status))
            self._held = self._held[whole:]

    def close(self) -> None:
        """End the template, and with it every process that is still there after the grace."""
        if self._template is None:
            return
        channel, process = self._template
        with suppress(OSError):  # only our half: what it reports at the end is still read
            channel.shutdown(socket.SHUT_WR)
        process.wait()
        self.collect()
        if self._template is not None:
            self._drop()

    def _send(self, channel: socket.socket, target: str, connection: socket.socket) -> None:
        name = target.encode()
        # the descriptor travels with the length, which the template reads alone
        socket.send_fds(channel, [ORDER.pack(len(name))], [connection.fileno()])
        channel.sendall(name)

    def _note(self, pid: int, code: int) -> None:
        self._codes[pid] = code
        while len(self._codes) > _MOST_CODES:
            del self._codes[next(iter(self._codes))]
        if code:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            log.warning("process %d ended by %s", pid, how)

    def _drop(self) -> None:
        assert self._template is not None
        channel, process = self._template
        self._template, self._held = None, b""
        channel.close()
        process.poll()  # collects what a template that died has left
