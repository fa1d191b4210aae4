"""Everything that can be checked before anything is computed."""

import logging

from ingot.compress.quantize.drift import range_drift
from ingot.core.errors import IngotError
from ingot.core.progress import Progress
from ingot.evaluate.compare import plan as plan_claims
from ingot.evaluate.costs import timing_feeds
from ingot.models.vocabulary import check_rows
from ingot.runtime.energy import check_goal
from ingot.search.job import Job

log = logging.getLogger(__name__)


def check_job(job: Job) -> None:
    """Refuse what could never work: goal, claims, shapes, and rows that do not fit the model.

    Raises:
        ClaimError: A claim cannot be parsed, or this many examples could never decide it.
        DataError: The split is missing, rows do not fit the model, or tokens are not its own.
        EngineError: The goal cannot be measured here, or a shape does not fit the model.
    """
    check_goal(job.goal)
    split = job.data.split(job.split)
    plan_claims(job.data, split, job.claims)
    for part in job.data.splits.values():
        check_rows(job.model, part)
    timing_feeds(job.model, split, job.shapes, seed=job.seed)


def warn_of_drift(job: Job, progress: Progress) -> tuple[str, ...]:
    """Warn if calibration data do not look like the data that is judged; return the warning.

    It takes seconds, so a search does it first: who sees it can stop before the work is done.
    """
    if "calibration" not in job.data.splits:
        return ()
    sides = (job.data.split(name) for name in ("calibration", job.split))
    try:
        warning = range_drift(job.model, *sides, progress=progress).warning
    except IngotError:
        return ()  # nothing to quantize, or tensors that are not finite: the methods say so
    if warning:
        log.warning(warning)
    return (warning,) if warning else ()
