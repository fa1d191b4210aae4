"""One process of a nursery for callers that wait for messages in a thread."""

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Concatenate, ParamSpec

from ingot.core.errors import ServeError
from ingot.serve.workers.nursery import Nursery

P = ParamSpec("P")
BEGIN = f"{__name__}:begin"
_BORN_S = 60.0  # what a template may take to import what it was asked to
_REAPED_S = 0.2


class Child:
    """A process that runs one function, and the link to it.

    Both ends send picklable values over the link, which is private to the two. Ours reads an end of
    file (EOFError) after all that was said, when the process has ended.

    Attributes:
        link: To the process.
        pid: Its process id; 0 if it ended before it said so.
    """

    link: "Connection[Any, Any]"

    def __init__(
        self,
        nursery: Nursery,
        function: "Callable[Concatenate[Connection[Any, Any], P], None]",
        *values: P.args,
        **more: P.kwargs,
    ) -> None:
        """Start it and return once it lives.

        Args:
            nursery: Where it comes from.
            function: What it runs, with its end of the link first; found by its name, so it must
                be a function of a module other than the caller's script.
            values: Further arguments; picklable.
            more: Further arguments by name; picklable.

        Raises:
            ServeError: It does not come to life.
            OSError: No process can be started.
        """
        ours, theirs = socket.socketpair()
        self._nursery, self.pid = nursery, 0
        self.link = Connection(ours.detach())
        try:
            nursery.fork(BEGIN, theirs)
            self._greet(function, values, more)
        except BaseException:
            self.link.close()
            raise

    def kill(self) -> None:
        """End it at once; its link is then seen to end."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    @property
    def exitcode(self) -> int | None:
        """How it ended, as `Nursery.code` says; to be asked once its link has."""
        return self._nursery.code(self.pid, patience_s=_REAPED_S)

    def _greet(self, *call: object) -> None:
        if not self.link.poll(_BORN_S):
            raise ServeError(
                f"A process must come to life within {_BORN_S:g} s; it did not. Look at the "
                "machine's load, and at what the endpoint's modules do when they are imported."
            )
        with suppress(EOFError, OSError):  # it is gone already: its link says so to whoever listens
            self.pid = self.link.recv()
            self.link.send(call)


def begin(connection: socket.socket) -> None:
    """Run what the caller asks for, in a process that was just forked."""
    link: Connection[Any, Any] = Connection(connection.detach())
    link.send(os.getpid())
    try:
        function, values, more = link.recv()
    except EOFError:  # the caller is gone
        return
    function(link, *values, **more)
