"""The process that workers are forked from: it has imported what they need and started nothing.

A fork of it answers within tens of milliseconds, where a new interpreter needs seconds. It is a
program of its own and not `multiprocessing`'s fork server, because that one runs the caller's main
script again in every worker: a script that imports torch would cost each worker seconds and
hundreds of megabytes, and one without a main guard would start workers without end.
"""

import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from ingot.serve.workers.wire import PREFIX, TO_TEMPLATE, Ended, Start, frame, receive_exactly

log = logging.getLogger(__name__)

# Only what starts no thread when it is imported; OpenVINO does, so each worker imports it itself.
_LIBRARIES = {"onnxruntime": "onnxruntime", "native": "ingot_native"}
# numpy's BLAS and ONNX Runtime's telemetry start threads when they are imported, and threads do not
# survive a fork. Nothing about a model may leave the machine either.
_WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
_GRACE_S = 2.0
_TICK_S = 0.02
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from ingot.serve.workers.template import main; main(int(sys.argv[1]), sys.argv[3:])"
)


def start_template(engines: set[str]) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Start a template.

    Args:
        engines: Names of the engines whose libraries it imports ahead.

    Returns:
        The channel to it, and the process. Closing the channel ends the template and its workers.
    """
    ours, theirs = socket.socketpair()
    names = sorted(_LIBRARIES[name] for name in engines & _LIBRARIES.keys())
    words = [sys.executable, "-c", _CODE, str(theirs.fileno()), json.dumps(sys.path), *names]
    environment = os.environ | _WITHOUT_THREADS
    with theirs:
        process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=environment)
    return ours, process


def main(descriptor: int, libraries: list[str]) -> None:
    """Fork a worker for every message, say how each ended, and end with the server.

    Args:
        descriptor: The channel to the server.
        libraries: What to import ahead; one that is not there is the worker's to explain.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # both reach the whole process group; the server drains first and then closes the channel
        signal.signal(number, signal.SIG_IGN)
    for name in ("ingot.serve.workers.worker", *libraries):
        with suppress(ImportError):
            importlib.import_module(name)
    with socket.socket(fileno=descriptor) as channel:
        _Template(channel).run()


class _Template:
    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._children = channel, set[int]()
        self._wake, self._bell = socket.socketpair()
        for end in (self._wake, self._bell):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the channel is closed, then see every worker end."""
        while True:
            ready, _, _ = select.select([self._channel, self._wake], [], [])
            if self._wake in ready:
                self._wake.recv(4096)
                self._reap()
            if self._channel in ready and not self._fork():
                break
        deadline = time.monotonic() + _GRACE_S
        while self._children and time.monotonic() < deadline:
            time.sleep(_TICK_S)
            self._reap()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _fork(self) -> bool:
        # the length is read alone, so that the descriptor beside it is this message's
        try:
            prefix, descriptors, _, _ = socket.recv_fds(self._channel, PREFIX.size, 1)
        except ConnectionError:
            return False
        body = receive_exactly(self._channel, PREFIX.unpack(prefix)[0]) if prefix else None
        if body is None:
            return False
        start = TO_TEMPLATE.decode(body)
        with socket.socket(fileno=descriptors[0]) as connection:
            pid = os.fork()
            if pid == 0:
                self._become_worker(connection, start)
            self._children.add(pid)
        return True

    def _become_worker(self, connection: socket.socket, start: Start) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._channel, self._wake, self._bell):
                end.close()
            from ingot.serve.workers.worker import work

            work(connection, start)
            code = 0
        except BaseException:  # a process edge: nothing may return into the template's loop
            log.exception("worker %d failed", os.getpid())
        finally:
            os._exit(code)

    def _reap(self) -> None:
        for pid in tuple(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.remove(pid)
                with suppress(OSError):  # the server may be gone already
                    self._channel.sendall(frame(Ended(pid, status)))
