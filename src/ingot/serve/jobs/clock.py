"""The clocks of a job store: one that never jumps for deadlines, one of the day for people."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Clock:
    """What a store asks for the time.

    Leases, waits and deadlines are kept in `steady` seconds, which all processes of a machine
    share and no clock setting changes; they mean nothing after a restart of the machine, which
    `boot` tells. `wall` is only shown, and used once after a restart to carry deadlines over.

    Attributes:
        steady: Seconds since the machine started, sleep included.
        wall: UTC seconds since 1970.
        boot: Name of this start of the machine.
    """

    steady: Callable[[], float]
    wall: Callable[[], float]
    boot: str


def machine_clock() -> Clock:
    """Return the clocks of this machine.

    Where the machine does not name its starts (anything but Linux), a start is noticed by the
    steady clock running backwards.
    """
    source = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    boot = _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else _UNKNOWN
    return Clock(lambda: time.clock_gettime(source), time.time, boot)
