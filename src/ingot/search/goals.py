"""What a search can be best at, and what must be measured for it in processes of their own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ingot.core.digest import hex_of
from ingot.core.errors import IngotError
from ingot.core.progress import Progress
from ingot.core.units import show_bytes
from ingot.evaluate.costs import spread, timing_feeds
from ingot.evaluate.evidence import Interval
from ingot.models.model import Model
from ingot.runtime.cold_start import cold_start, peak_rss
from ingot.runtime.energy import POWERCAP, EnergyCounter, energy_per_call
from ingot.runtime.engines import open_session
from ingot.search.job import Job
from ingot.search.journal import Journal
from ingot.search.trial import Outcome

Unit = Literal["s", "bytes", "J"]
UNITS: dict[str, Unit] = {"cold_start": "s", "memory": "bytes", "energy": "J"}
RUNS = 6


def check_goal(goal: str, *, counters: Path = POWERCAP) -> None:
    """Refuse a goal that this machine cannot measure, before any work.

    Raises:
        EngineError: The goal is energy and there is no counter to read.
    """
    if goal == "energy":
        EnergyCounter.find(counters)


def with_costs(
    job: Job,
    outcomes: Sequence[Outcome],
    models: Callable[[str], Model],
    journal: Journal,
    progress: Progress,
) -> tuple[Outcome, ...]:
    """Return the outcomes; those that hold every claim with what the goal costs, if it is special.

    Latency, throughput and size are known of all; cold start and memory take fresh processes,
    energy a window of half a second.
    """
    if job.goal not in UNITS:
        return tuple(outcomes)
    found = []
    for i, outcome in enumerate(outcomes):
        progress.step(f"{job.goal} of {outcome.trial.label}", i, len(outcomes))
        wanted = outcome.passed and outcome.ran
        found.append(_with_cost(job, outcome, models, journal) if wanted else outcome)
    return tuple(found)


def _with_cost(
    job: Job, outcome: Outcome, models: Callable[[str], Model], journal: Journal
) -> Outcome:
    step = f"{job.goal}-{hex_of(outcome.trial.digest)[:24]}"
    known = journal.read(step)
    if known is None:
        try:
            values = _MEASURES[job.goal](job, models(outcome.model), outcome)
        except IngotError as error:
            return replace(outcome, passed=False, reason=str(error))
        known = {"values": list(values)}
        journal.write(step, known)
    values = [float(value) for value in known["values"]]  # type: ignore[union-attr,arg-type] # as written above
    cost = spread(values)
    return replace(outcome, cost=cost, reason=f"{outcome.reason}; {show_cost(job.goal, cost)}")


def _cold(job: Job, model: Model, outcome: Outcome) -> Sequence[float]:
    del job
    return cold_start(model, outcome.trial.config, runs=RUNS).seconds


def _memory(job: Job, model: Model, outcome: Outcome) -> Sequence[float]:
    del job
    return [float(peak_rss(model, outcome.trial.config)) for _ in range(RUNS)]


def _energy(job: Job, model: Model, outcome: Outcome) -> Sequence[float]:
    feeds = timing_feeds(model, job.data.split(job.split), job.shapes[:1], seed=job.seed)
    session = open_session(model, outcome.trial.config, factory=job.factory)
    try:
        return energy_per_call(session, next(iter(feeds.values())), EnergyCounter.find(), runs=RUNS)
    finally:
        session.close()


_MEASURES: dict[str, Callable[[Job, Model, Outcome], Sequence[float]]] = {
    "cold_start": _cold,
    "memory": _memory,
    "energy": _energy,
}


def show_cost(goal: str, cost: Interval) -> str:
    """Return a cost in words, e.g. `cold start 0.31 s`."""
    unit, name = UNITS[goal], goal.replace("_", " ")
    if unit == "bytes":
        return f"{name} {show_bytes(int(cost.value))}"
    return f"{name} {cost.value:.3g} {unit}"
