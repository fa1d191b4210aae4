"""Processes that must not outlive us: the whole tree below a process, whoever left it behind.

Linux only. An orphan goes to the nearest ancestor that asked for orphans (`adopt_orphans`) instead
of to the first process of the machine, so that ancestor still finds and ends it, whatever session
or process group it moved to. That ancestor can die too; what is started with `die_with_parent` is
then ended by the kernel.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36  # linux/prctl.h
_PROC = Path("/proc")
_TICK_S = 0.02
_LOOK_S = 1.0


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Let the kernel send a signal to this process when the thread that started it ends.

    Args:
        number: The signal.
        parent: Process that must be the parent now; if it is gone already, this one ends at once.
    """
    _prctl(_SET_DEATH_SIGNAL, number)
    if os.getppid() != parent:
        signal.raise_signal(number)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose parent ends."""
    _prctl(_SET_SUBREAPER, 1)


def descendants(root: int) -> list[int]:
    """Return every process below one, zombies left out.

    Args:
        root: Its id; it is not among them.
    """
    return list(_below({root}))


def running(binary: Path) -> set[int]:
    """Return every process below this one that runs an executable.

    Args:
        binary: Its file.
    """
    found = set()
    for process in descendants(os.getpid()):
        with suppress(OSError):
            if (_PROC / str(process) / "exe").samefile(binary):
                found.add(process)
    return found


def end_descendants(*, grace_s: float, clock: Callable[[], float] = time.monotonic) -> int:
    """End every process below this one: asked first, killed after a while, until none is left.

    Args:
        grace_s: Seconds between asking and killing.
        clock: Monotonic seconds.

    Returns:
        How many had to be killed.
    """
    me, killed = os.getpid(), set()
    _send(descendants(me), signal.SIGTERM)
    deadline = clock() + grace_s
    while left := descendants(me):
        if clock() > deadline:
            killed |= set(left)
            _send(left, signal.SIGKILL)
        _reap()
        time.sleep(_TICK_S)
    _reap()
    return len(killed)


def start_heir(unheard: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a process that ends what this one leaves behind if nobody else can.

    Args:
        unheard: Read end of a pipe. Who holds the other end looks after the tree; when nobody does
            any more, the heir ends every process that it has seen below this one.
        folder: What it removes then.
    """
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(os.getpid()), str(folder)],
        stdin=unheard,
        start_new_session=True,
    )


def inherit(root: int, unheard: int) -> None:
    """Remember what is below a process until a pipe ends, and end that.

    Args:
        root: Its id.
        unheard: Read end of the pipe.
    """
    seen: dict[int, int] = {}
    found = _look(root)
    while not select.select([unheard], [], [], _LOOK_S)[0]:
        if found is not None and _is_same(root, found[2]):  # else its id may be another's by now
            seen |= _below({root})
    seen.pop(os.getpid(), None)
    while left := {process for process, begin in seen.items() if _is_same(process, begin)}:
        seen |= _below(left)
        _send(left, signal.SIGKILL)
        time.sleep(_TICK_S)


def _is_same(process: int, begin: int) -> bool:
    found = _look(process)
    return found is not None and found[0] != "Z" and found[2] == begin


def _send(processes: Iterable[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def _below(roots: set[int]) -> dict[int, int]:
    """Return every process below some, with the time it started at, which its id alone lacks."""
    children: dict[int, list[int]] = {}
    started: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (found := _look(int(entry.name))) is not None:
            state, parent, begin = found
            children.setdefault(parent, []).append(int(entry.name))
            if state != "Z":
                started[int(entry.name)] = begin
    below: dict[int, int] = {}
    waiting = list(roots)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child)
            if child in started:
                below[child] = started[child]
    return below


def _look(process: int) -> tuple[str, int, int] | None:
    """Return state, parent and start (clock ticks since boot) of a process; None if it is gone."""
    try:
        text = (_PROC / str(process) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # a name may hold spaces and brackets
    return fields[0], int(fields[1]), int(fields[19])


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    inherit(int(sys.argv[1]), sys.stdin.fileno())
    shutil.rmtree(sys.argv[2], ignore_errors=True)
