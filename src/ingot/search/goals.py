"""What a search can be best at, and what must be measured for it on its own."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

from ingot.core.digest import hex_of
from ingot.core.errors import IngotError
from ingot.core.progress import Progress
from ingot.core.units import show_bytes
from ingot.evaluate.costs import spread, timing_feeds
from ingot.evaluate.evidence import Interval
from ingot.models.feeds import feeds_for
from ingot.models.model import Model
from ingot.runtime.buckets import run_rows
from ingot.runtime.cold_start import cold_start, peak_rss
from ingot.runtime.compiled import drop_forms
from ingot.runtime.energy import EnergyCounter, energy_per_call
from ingot.runtime.engines import compile_ahead, open_session
from ingot.search.job import Job
from ingot.search.journal import Journal
from ingot.search.trial import Outcome

Unit = Literal["s", "bytes", "J", "s per row"]
Probe = Callable[[], float]
UNITS: dict[str, Unit] = {
    "cold_start": "s",
    "memory": "bytes",
    "energy": "J",
    "throughput": "s per row",
}
RUNS = 6
ROWS = 2048


def with_costs(
    job: Job,
    outcomes: Sequence[Outcome],
    models: Callable[[str], Model],
    journal: Journal,
    progress: Progress,
) -> tuple[Outcome, ...]:
    """Return the outcomes; those that hold every claim with what the goal costs, if it is special.

    Latency and size are known of all. Throughput is measured on the rows that are judged, at their
    own lengths; cold start and memory take fresh processes, energy a window of half a second. The
    candidates take turns, so that none has the quiet minute of the machine to itself.
    """
    if job.goal not in UNITS:
        return tuple(outcomes)
    costs: dict[int, Interval | str] = {}
    with ExitStack() as opened:
        probes = {}
        for i, outcome in enumerate(outcomes):
            if not (outcome.passed and outcome.ran):
                continue
            known = journal.read(_step(job, outcome))
            if known is not None:
                costs[i] = spread([float(v) for v in known["values"]])  # type: ignore[union-attr,arg-type] # as written below
                continue
            try:
                probes[i] = _PROBES[job.goal](job, models(outcome.model), outcome, opened)
            except IngotError as error:
                costs[i] = str(error)
        for i, values in _in_turns(job.goal, probes, progress).items():
            costs[i] = values if isinstance(values, str) else spread(values)
            if not isinstance(values, str):
                journal.write(_step(job, outcomes[i]), {"values": list(values)})
    return tuple(
        _with_cost(job.goal, o, costs[i]) if i in costs else o for i, o in enumerate(outcomes)
    )


def _step(job: Job, outcome: Outcome) -> str:
    return f"{job.goal}-{hex_of(outcome.trial.digest)[:24]}"


def _in_turns(
    goal: str, probes: dict[int, Probe], progress: Progress
) -> dict[int, list[float] | str]:
    """Return what every probe gave in each of six turns, or why it failed."""
    found: dict[int, list[float] | str] = {i: [] for i in probes}
    for turn in range(RUNS):
        progress.step(f"measuring {goal.replace('_', ' ')}", turn, RUNS)
        for i, probe in probes.items():
            values = found[i]
            if isinstance(values, str):
                continue
            try:
                values.append(probe())
            except IngotError as error:
                found[i] = str(error)
    return found


def _with_cost(goal: str, outcome: Outcome, cost: Interval | str) -> Outcome:
    if isinstance(cost, str):
        return replace(outcome, passed=False, reason=cost)
    return replace(outcome, cost=cost, reason=f"{outcome.reason}; {show_cost(goal, cost)}")


def _cold(job: Job, model: Model, outcome: Outcome, opened: ExitStack) -> Probe:
    # as it will start when it is served; the form of the one that is chosen is made again
    opened.callback(drop_forms, model)
    compile_ahead(model, outcome.trial.config, factory=job.factory)
    return lambda: cold_start(model, outcome.trial.config, runs=1).median_s


def _memory(job: Job, model: Model, outcome: Outcome, opened: ExitStack) -> Probe:
    del job, opened
    return lambda: float(peak_rss(model, outcome.trial.config))


def _energy(job: Job, model: Model, outcome: Outcome, opened: ExitStack) -> Probe:
    shapes = timing_feeds(model, job.data.split(job.split), job.shapes[:1], seed=job.seed)
    feeds, counter = next(iter(shapes.values())), EnergyCounter.find()
    session = open_session(model, outcome.trial.config, factory=job.factory)
    opened.callback(session.close)
    return lambda: energy_per_call(session, feeds, counter, runs=1)[0]


def _throughput(job: Job, model: Model, outcome: Outcome, opened: ExitStack) -> Probe:
    split = job.data.split(job.split)
    some = split.take(range(min(len(split), ROWS // split.rows_per_example)))
    feeds, batch = feeds_for(model.signature, some.inputs), job.shapes[0][0]
    session = open_session(model, outcome.trial.config, factory=job.factory)
    opened.callback(session.close)
    run_rows(session, feeds, batch_rows=max(batch, 32))

    def probe() -> float:
        start = time.perf_counter()
        run_rows(session, feeds, batch_rows=max(batch, 32))
        return (time.perf_counter() - start) / some.rows

    return probe


_PROBES: dict[str, Callable[[Job, Model, Outcome, ExitStack], Probe]] = {
    "cold_start": _cold,
    "memory": _memory,
    "energy": _energy,
    "throughput": _throughput,
}


def show_cost(goal: str, cost: Interval) -> str:
    """Return a cost in words, e.g. `cold start 0.31 s`."""
    unit, name = UNITS[goal], goal.replace("_", " ")
    if unit == "bytes":
        return f"{name} {show_bytes(int(cost.value))}"
    if unit == "s per row":
        return f"{name} {1 / cost.value:,.0f} rows/s"
    return f"{name} {cost.value:.3g} {unit}"
