"""Energy per call, from the counters that processors keep (RAPL), where the machine shows them."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ingot.core.errors import EngineError
from ingot.core.goals import GOALS
from ingot.core.names import suggest
from ingot.data.data import Array
from ingot.runtime.engine import Session

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(
    r"intel-rapl:\d+"
)  # whole sockets, on AMD too; parts of them would count twice
_LEAST_S = 0.5  # counters tick about every millisecond: a shorter window is mostly rounding


@dataclass(frozen=True, slots=True)
class EnergyCounter:
    """The energy counters of every processor package, in microjoules that start again at a limit.

    Attributes:
        files: The file of each package's counter.
        limits: Where each counter starts again from 0.
    """

    files: tuple[Path, ...]
    limits: tuple[int, ...]

    @classmethod
    def find(cls, root: Path = POWERCAP) -> "EnergyCounter":
        """Return the counters of this machine.

        Raises:
            EngineError: There is none, or this user may not read it.
        """
        zones = sorted(p for p in root.glob("intel-rapl:*") if _PACKAGE.fullmatch(p.name))
        files = tuple(zone / "energy_uj" for zone in zones)
        try:
            limits = tuple(int((z / "max_energy_range_uj").read_text()) for z in zones)
            for file in files:
                int(file.read_text())
        except (OSError, ValueError) as error:
            raise EngineError(
                f"Energy must be read from counters that this user may read; got: {error}. "
                f"Let root make {root}/*/energy_uj readable, or choose another goal: latency."
            ) from error
        if not files:
            raise EngineError(
                f"Energy must be read from a counter; this machine shows none under {root}, as "
                "virtual machines do. Measure on a machine of your own, or choose another goal: "
                "latency."
            )
        return cls(files, limits)

    def read(self) -> tuple[int, ...]:
        """Return the counters, in microjoules."""
        return tuple(int(file.read_text()) for file in self.files)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Return the energy between two readings; each counter may have started again once."""
        steps = zip(before, after, self.limits, strict=True)
        return sum((b - a) if b >= a else (b - a + limit) for a, b, limit in steps) / 1e6


def check_goal(goal: str, *, counters: Path = POWERCAP) -> None:
    """Refuse a goal that is none, or that this machine cannot measure, before any work.

    Raises:
        EngineError: The name is unknown, or the goal is energy and there is no counter to read.
    """
    if goal not in GOALS:
        raise EngineError(
            f"A goal must be one of {', '.join(GOALS)}; got {goal!r}. {suggest(goal, GOALS)}"
        )
    if goal == "energy":
        EnergyCounter.find(counters)


def energy_per_call(
    session: Session,
    feeds: Mapping[str, Array],
    counter: EnergyCounter,
    *,
    runs: int = 6,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, ...]:
    """Return joules per call of the whole processor, idle parts included, once per run.

    Args:
        session: What runs.
        feeds: Inputs by name.
        counter: What to read.
        runs: Windows of at least half a second.
        clock: Seconds.
    """
    session.run(feeds)
    found = []
    for _ in range(runs):
        calls, start, before = 0, clock(), counter.read()
        while clock() - start < _LEAST_S:
            session.run(feeds)
            calls += 1
        found.append(counter.joules(before, counter.read()) / calls)
    return tuple(found)
