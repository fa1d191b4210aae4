"""Before a candidate is kept, a second engine must give its answers; what parts them is named."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ingot.core.errors import EngineError, IngotError
from ingot.evaluate.diagnose import explain_difference, first_difference, node_errors
from ingot.models.feeds import feeds_for
from ingot.models.model import Model
from ingot.runtime.agreement import MAX_RELATIVE_ERROR, relative_error
from ingot.runtime.buckets import run_rows
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.measure import Candidate
from ingot.search.job import Job
from ingot.search.result import choose_best
from ingot.search.trial import Outcome

TRUSTED = EngineConfig("onnxruntime", "fp32")
EXAMPLES = 8


def settle(
    job: Job, outcomes: Sequence[Outcome], models: Callable[[str], Model]
) -> tuple[tuple[Outcome, ...], Outcome | None]:
    """Return the outcomes and the best one on whose answers two engines agree.

    A file that two engines read differently is no artefact: who serves it elsewhere would serve
    something that was never judged. Such a candidate is refused with the first node that differs.
    """
    marked, chosen = choose_best(outcomes, job.goal)
    while chosen is not None and (reason := _disagreement(job, chosen, models(chosen.model))):
        refused = replace(chosen, passed=False, reason=reason)
        rest = [refused if o is chosen else o for o in marked]
        marked, chosen = choose_best(rest, job.goal)
    return marked, chosen


def _disagreement(job: Job, outcome: Outcome, model: Model) -> str:
    """Return why a second engine does not confirm a candidate, or nothing."""
    config = outcome.trial.config
    if config.engine == TRUSTED.engine or config.engine.startswith("torch"):
        return ""
    split = job.data.split(job.split)
    some = split.take(range(min(len(split), EXAMPLES)))
    trusted = Candidate("trusted", model, replace(TRUSTED, threads=config.threads))
    kept = Candidate("kept", model, replace(config, buckets=(), batch_sizes=(), streams=1))
    feeds = feeds_for(model.signature, some.inputs)
    try:
        found = []
        for side in (trusted, kept):
            session = open_session(model, side.config)
            try:
                found.append(run_rows(session, feeds, batch_rows=EXAMPLES))
            finally:
                session.close()
    except EngineError:
        return ""  # nobody else runs the file: there is no second opinion
    gap = relative_error(*found)
    if gap <= MAX_RELATIVE_ERROR:
        return ""
    first = first_difference(node_errors(trusted, kept, some), MAX_RELATIVE_ERROR)
    where = f"The first node that differs is {first}." if first else "No single node differs alone."
    return (
        f"{TRUSTED.engine} and {config.engine} must give the same answers from one file; they "
        f"differ by {gap:.3g} of their size (at most {MAX_RELATIVE_ERROR:g}). {where}"
    )


def name_fault(
    job: Job, outcomes: Sequence[Outcome], models: Callable[[str], Model]
) -> tuple[str, ...]:
    """Return a sentence about the fastest candidate that broke a claim: where its error is made."""
    broken = [
        o for o in outcomes if o.passed is False and o.latency and not o.trial.is_float and o.model
    ]
    if not broken:
        return ()
    worst = min(broken, key=lambda o: o.latency.value if o.latency else 0.0)
    config = replace(worst.trial.config, buckets=(), batch_sizes=(), streams=1)
    if config.engine.startswith("torch"):
        return ()
    side = Candidate("broken", models(worst.model), config)
    try:
        sentence = explain_difference(job.model, side, job.data.split(job.split))
    except IngotError as error:
        return (f"{worst.trial.label} breaks a claim; where could not be found: {error}",)
    return (f"{worst.trial.label} breaks a claim. {sentence}",)
