"""The main job: try methods and engines, keep the best that proves its claims."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ingot.compress.quantize.left_in_float import left_in_float
from ingot.compress.recipe import Factory
from ingot.core.errors import EngineError, IngotError
from ingot.core.goals import Goal
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Data
from ingot.models.model import Model
from ingot.models.onnx_format import read_skeleton
from ingot.runtime.engine import Engine
from ingot.runtime.engines import compile_ahead
from ingot.runtime.engines import engines as all_engines
from ingot.runtime.machine import describe_machine, machine_digest
from ingot.search.check import check_job, warn_of_drift
from ingot.search.crosscheck import name_fault, settle
from ingot.search.explain import explain, summarize
from ingot.search.goals import with_costs
from ingot.search.job import Job, Shape
from ingot.search.journal import Journal
from ingot.search.judge import Judged
from ingot.search.ladder import climb
from ingot.search.make import Made
from ingot.search.output import write_output
from ingot.search.result import Result
from ingot.search.space import default_trials
from ingot.search.trial import Trial

log = logging.getLogger(__name__)


def plan(
    model: Model,
    data: Data,
    *,
    require: Sequence[str] = (),
    goal: Goal = "latency",
    shapes: Sequence[Shape] = ((1, None),),
    split: str = "test",
    threads: int = 0,
    buckets: Sequence[int] = (),
    factory: Factory | None = None,
) -> tuple[Trial, ...]:
    """Return what `optimize` would try first on this machine, without trying it.

    All that can be checked before anything is computed is checked: claims, goal, shapes, and the
    rows of every split. Methods that need a calibration split are left out when the data have none.

    Raises:
        ClaimError: A claim cannot be parsed, or this data could never decide it.
        DataError: The data do not fit the model, or another tokenizer made them.
        EngineError: No engine works here, the goal cannot be measured here, a shape does not fit,
            or there are buckets and no `attention_mask`.
    """
    claims = tuple(require) or default_claims(data)
    job = Job(model, data, claims, goal, tuple(shapes), split, 0, factory, 0.0, threads)
    check_job(job)
    return _first(job, buckets)


def optimize(
    model: Model,
    data: Data,
    *,
    require: Sequence[str] = (),
    goal: Goal = "latency",
    shapes: Sequence[Shape] = ((1, None),),
    split: str = "test",
    threads: int = 0,
    buckets: Sequence[int] = (),
    out: Path | str = "best",
    trials: Sequence[Trial] | None = None,
    factory: Factory | None = None,
    seed: int = 0,
    minutes: float = 0.0,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> Result:
    """Try methods and engines on a model, prove what changed, and write the best that holds.

    An interrupted run goes on where it stopped when it is called again with the same model, data,
    claims, shapes and trials on the same machine.

    Args:
        model: The float model.
        data: Needs the split `calibration` for static quantization and the split to judge on.
        require: Claims such as `"accuracy drop <= 0.005"`; the candidate must keep all of them on
            the bad end of their intervals. Without claims a default is taken from the task.
        goal: What to be best at among those that keep the claims. Energy needs a counter.
        shapes: (batch, sequence) at which latency is measured; the first one counts.
        split: Split that quality is judged on.
        threads: Threads per call; 0 is every physical core.
        buckets: Lengths that texts are padded up to; see `EngineConfig`.
        out: Folder to write: model, evidence, recipe and report.
        trials: Exactly what to try. By default what is worth trying for this architecture, and
            then what the outcomes suggest.
        factory: Builds the torch network of `model`; adds torch engines and torch methods.
        seed: Every random choice.
        minutes: Training that may be spent on networks with fewer layers. It needs the split
            `training`, without labels; 0 leaves the layers alone.
        fresh: Forget what an interrupted run finished.
        progress: Where work reports.

    Raises:
        ClaimError: A claim cannot be parsed, or this data could never decide it.
        DataError: The data do not fit the model.
        EngineError: Nothing runs the model, or the goal or a shape does not fit machine or model.
    """
    claims = tuple(require) or default_claims(data)
    job = Job(model, data, claims, goal, tuple(shapes), split, seed, factory, minutes, threads)
    check_job(job)
    first = _first(job, buckets) if trials is None else tuple(trials)
    notes = warn_of_drift(job, progress)
    journal = _journal(job, first, fresh=fresh)
    made, judged = climb(job, first, journal, progress, rungs=trials is None)
    result = _result(job, made, judged, Path(out), journal=journal, progress=progress)
    result = replace(result, notes=(*notes, *result.notes))
    write_output(job, result, judged.best_float, progress)
    _prepare_start(job, result)
    return result


def _prepare_start(job: Job, result: Result) -> None:
    """Keep the compiled form of what was chosen; without it a start only takes longer."""
    if result.chosen is None or result.model is None:
        return
    try:
        compile_ahead(result.model, result.chosen.trial.config, factory=job.factory)
    except IngotError as error:
        log.warning("what was chosen will be compiled on every start: %s", error)


def _first(job: Job, buckets: Sequence[int]) -> tuple[Trial, ...]:
    """Return what is tried before any outcome is known."""
    trials = default_trials(
        job.model,
        _available(job.factory),
        threads=job.threads,
        buckets=buckets,
        batch_sizes=[batch for batch, _ in job.shapes],
        goal=job.goal,
    )
    known = job.data.splits
    return tuple(
        trial
        for trial in trials
        if all(need in known for m in trial.recipe.methods for need in m.needs - {"labels"})
    )


def _journal(job: Job, trials: Sequence[Trial], *, fresh: bool) -> Journal:
    journal = Journal.of(job.digest(tuple(trials), machine_digest(describe_machine())))
    if fresh:
        journal.forget()
    return journal


def _result(
    job: Job,
    made: Sequence[Made],
    judged: Judged,
    folder: Path,
    *,
    journal: Journal,
    progress: Progress,
) -> Result:
    models = {one.model.digest: one.model for one in made if one.model is not None}
    priced = with_costs(job, judged.outcomes, models.__getitem__, journal, progress)
    outcomes, chosen = settle(job, priced, models.__getitem__)
    notes = (
        *explain(outcomes, chosen, judged.metric),
        *name_fault(job, outcomes, models.__getitem__),
    )
    model = models[chosen.model] if chosen else None
    left = (
        left_in_float(read_skeleton(model.onnx_path), chosen.trial.recipe.methods)
        if model and chosen
        else ()
    )
    return Result(
        outcomes,
        chosen,
        model,
        folder,
        summarize(chosen, judged.best_float, len(outcomes)),
        judged.metric,
        judged.shape,
        notes,
        left,
    )


def default_claims(data: Data) -> tuple[str, ...]:
    """Return the claim that is taken when none is made: one point, or 2 % of variance."""
    return {
        "classification": ("accuracy drop <= 0.01",),
        "similarity": ("spearman drop <= 0.01",),
        "regression": ("pearson drop <= 0.01",),
        "none": ("r2 >= 0.98",),
    }[data.task.value]


def _available(factory: Factory | None) -> Mapping[str, Engine]:
    """Return the engines that work here.

    Raises:
        EngineError: None does.
    """
    found = all_engines(factory)
    ready = {name: engine for name, engine in found.items() if engine.available().ok}
    if not ready:
        reasons = "; ".join(f"{name}: {e.available().reason}" for name, e in found.items())
        raise EngineError(
            f"At least one engine must work here; got none ({reasons}). Run `ingot doctor`."
        )
    return ready
