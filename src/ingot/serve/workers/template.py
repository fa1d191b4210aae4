"""The process that others are forked from: it has imported what they need and started nothing.

A fork of it answers within tens of milliseconds, where a new interpreter needs seconds. Workers of
a real-time endpoint, instances of an asynchronous one and processes of a batch come from it alike.
It is a program of its own and not `multiprocessing`'s fork server, because that one is shared by
everything in an interpreter and runs the caller's main script again in every process: a script that
imports torch would cost each of them seconds and hundreds of megabytes, and one without a main
guard would start processes without end. It also ends nothing when its caller is killed.
"""

import importlib
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

ORDER = struct.Struct("!H")  # bytes of the target's name, which follow; a socket travels beside it
REPORT = struct.Struct("!ii")  # process id and `waitpid` status of one that ended
# numpy's BLAS and ONNX Runtime's telemetry start threads when they are imported, and threads do not
# survive a fork. Nothing about a model may leave the machine either.
_WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
# OpenVINO imports this if it is there, and it starts a thread and reports what is done
_NEVER_IMPORTED = "openvino_telemetry"
_TASKS = Path("/proc/self/task")
_TICK_S = 0.005
_KILLED_S = 1.0  # what the kernel may take to end a process that was killed
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from ingot.serve.workers.template import main; "
    "main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[4:])"
)


def start_template(
    modules: Sequence[str], *, grace_s: float
) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Start a template.

    Args:
        modules: What it imports ahead, if it is there; nothing that starts a thread.
        grace_s: Seconds in which its processes end by themselves once the channel is closed.

    Returns:
        The channel to it, and the process. Closing the channel ends the template and its processes.
    """
    ours, theirs = socket.socketpair()
    words = [sys.executable, "-c", _CODE, str(theirs.fileno()), str(grace_s), json.dumps(sys.path)]
    environment = os.environ | _WITHOUT_THREADS
    with theirs:
        process = subprocess.Popen([*words, *modules], pass_fds=[theirs.fileno()], env=environment)
    return ours, process


def main(descriptor: int, grace_s: float, modules: Sequence[str]) -> None:
    """Fork a process for every order, say how each ended, and end with the caller.

    Args:
        descriptor: The channel to the caller.
        grace_s: Seconds that processes get to end by themselves.
        modules: What to import ahead; one that is not there is for the process to explain.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # they reach the whole process group; the caller drains first and then closes the channel
        signal.signal(number, signal.SIG_IGN)
    sys.modules[_NEVER_IMPORTED] = None  # type: ignore[assignment] # makes its import fail
    for name in modules:
        with suppress(ImportError):
            importlib.import_module(name)
    if _TASKS.is_dir() and len(list(_TASKS.iterdir())) > 1:
        log.warning("importing %s started threads, which forked processes lack", ", ".join(modules))
    with socket.socket(fileno=descriptor) as channel:
        _Template(channel, grace_s).run()


class _Template:
    def __init__(self, channel: socket.socket, grace_s: float) -> None:
        self._channel, self._grace_s, self._children = channel, grace_s, set[int]()
        self._wake, self._bell = socket.socketpair()
        for end in (self._wake, self._bell):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the channel is closed, then see every process end."""
        while True:
            ready, _, _ = select.select([self._channel, self._wake], [], [])
            if self._wake in ready:
                self._wake.recv(4096)
                self._reap()
            if self._channel in ready and not self._fork():
                break
        self._see_end(self._grace_s)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        self._see_end(_KILLED_S)

    def _see_end(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        self._reap()
        while self._children and time.monotonic() < deadline:
            time.sleep(_TICK_S)
            self._reap()

    def _fork(self) -> bool:
        # the length is read alone, so that the descriptor beside it is this order's
        try:
            prefix, descriptors, _, _ = socket.recv_fds(self._channel, ORDER.size, 1)
            (size,) = ORDER.unpack(prefix) if prefix else (0,)
            target = self._channel.recv(size, socket.MSG_WAITALL) if size else b""
        except ConnectionError:
            return False
        if not target:
            return False
        with socket.socket(fileno=descriptors[0]) as connection:
            try:
                pid = os.fork()
            except OSError as error:  # no memory or no processes left, for now; the caller sees it
                log.error("no process can be forked: %s", error)
                return True
            if pid == 0:
                self._become(connection, target.decode())
            self._children.add(pid)
        return True

    def _become(self, connection: socket.socket, target: str) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._channel, self._wake, self._bell):
                end.close()
            module, _, name = target.partition(":")
            getattr(importlib.import_module(module), name)(connection)
            code = 0
        except BaseException:  # a process edge: nothing may return into the template's loop
            log.exception("process %d failed", os.getpid())
        finally:
            os._exit(code)

    def _reap(self) -> None:
        for pid in tuple(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.remove(pid)
                # the caller may be gone, or not listen: a report is never worth waiting for
                with suppress(OSError):
                    self._channel.send(REPORT.pack(pid, status), socket.MSG_DONTWAIT)
