"""How busy other processes kept the cores while we were timing."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ingot.runtime.machine import usable_cores

NOISE_LIMIT = 0.12  # share of the cores' time that others may take in a quiet chunk
_IDLE_FIELDS = (3, 4)  # idle and iowait in a `cpuN` line of /proc/stat
_COUNTED_FIELDS = 8  # user nice system idle iowait irq softirq steal; guest time is inside user
Reading = tuple[float, float, float]  # busy seconds, all seconds, our own CPU seconds


@dataclass(frozen=True, slots=True)
class NoiseMeter:
    """Reads the system's and our own CPU time.

    Attributes:
        stat: Kernel's counters; where the file is missing the share is unknown.
        cores: Logical cores that count.
        own_s: CPU seconds of this process, all threads.
        ticks_per_s: Unit of the counters.
    """

    stat: Path = Path("/proc/stat")
    cores: tuple[int, ...] = ()
    own_s: Callable[[], float] = time.process_time
    ticks_per_s: int = 100

    def read(self) -> Reading | None:
        """Return the counters now, or None where the system has none."""
        try:
            lines = self.stat.read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        wanted = {f"cpu{core}" for core in self.cores or usable_cores()}
        busy = total = 0
        for name, *fields in (line.split() for line in lines if line.startswith("cpu")):
            if name in wanted:
                ticks = [int(field) for field in fields[:_COUNTED_FIELDS]]
                total += sum(ticks)
                busy += sum(ticks) - sum(ticks[i] for i in _IDLE_FIELDS)
        return busy / self.ticks_per_s, total / self.ticks_per_s, self.own_s()


def others_share(before: Reading | None, after: Reading | None) -> float | None:
    """Return the fraction of the cores' time that other processes took, 0 to 1, or None if unknown.

    Examples:
        >>> others_share((0.0, 0.0, 0.0), (3.0, 10.0, 1.0))
        0.2
    """
    if before is None or after is None or after[1] <= before[1]:
        return None
    busy, total, own = (b - a for a, b in zip(before, after, strict=True))
    return min(1.0, max(0.0, (busy - own) / total))
