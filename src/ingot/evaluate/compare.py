"""The verb `compare`: run two models on the same data and machine, and say what changed."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ingot.core.errors import ClaimError, DataError
from ingot.core.names import suggest
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Array, Data, Split, Task
from ingot.evaluate.claims import Claim, check_decidable, judge, parse_claim
from ingot.evaluate.costs import (
    Latencies,
    compare_latencies,
    compare_processes,
    compare_sizes,
    measure_latencies,
)
from ingot.evaluate.evidence import Comparison, Evidence
from ingot.evaluate.metrics import DEFAULTS, METRICS, check_width, cosine_rows
from ingot.evaluate.quality import changed_examples, quality
from ingot.models.feeds import feeds_for
from ingot.models.model import Model
from ingot.models.vocabulary import check_tokens
from ingot.runtime.buckets import run_rows
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.machine import describe_machine, machine_digest
from ingot.runtime.measure import Candidate

if TYPE_CHECKING:
    from torch.nn import Module


def compare(
    baseline: Model,
    candidate: Model,
    data: Data,
    *,
    require: Sequence[str] = (),
    split: str = "test",
    config: EngineConfig | None = None,
    baseline_config: EngineConfig | None = None,
    metrics: Sequence[str] | None = None,
    shapes: Sequence[tuple[int, int | None]] = ((1, None),),
    measure_speed: bool = True,
    output: str | None = None,
    full: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Evidence:
    """Return evidence of what changed; claims and data are checked before any model runs.

    Args:
        baseline: What was there before.
        candidate: What may replace it.
        data: Examples.
        require: Claims, e.g. `accuracy drop <= 0.01`.
        split: Split to judge on.
        config: How the candidate runs.
        baseline_config: How the baseline runs; as the candidate if not given.
        metrics: Metrics of quality; those of the task and of the claims if not given.
        shapes: Batch and sequence of the requests that are timed.
        measure_speed: Whether to time the models.
        output: Output to score; the first if not given.
        full: Whether to start fresh processes for cold start and memory without a claim on them.
        seed: Fixes resamples and the order of measuring.
        progress: Told what happens next.

    Raises:
        ClaimError: A claim cannot be parsed or decided.
        DataError: The data do not fit the models.
        EngineError: A model does not run.
    """
    examples = data.split(split)
    claims, chosen = plan(data, examples, require, metrics)
    _check_measured(claims, timed=measure_speed)
    check_tokens(baseline, examples.inputs)
    sides = (
        Candidate("baseline", baseline, baseline_config or config or EngineConfig()),
        Candidate("candidate", candidate, config or EngineConfig()),
    )
    progress.step("predicting with both", 0, 4)
    before, after = (predict_split(s.model, s.config, examples, output=output) for s in sides)
    _check_answers(data, examples, chosen, before, after)
    progress.step("measuring latency", 2, 4)
    measured = measure_latencies(sides, examples, shapes, seed) if measure_speed else {}
    progress.step("measuring fresh processes", 3, 4)
    wanted = {claim.metric for claim in claims} | ({"memory", "cold_start"} if full else set())
    return evidence_from(
        *sides, data=data, split=split, before=before, after=after, claims=claims, metrics=chosen,
        measured=measured, more=compare_processes(sides, wanted), seed=seed,
    )  # fmt: skip


def plan(
    data: Data, split: Split, require: Sequence[str], metrics: Sequence[str] | None = None
) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """Parse the claims and choose the metrics, before any work.

    Raises:
        ClaimError: A claim cannot be parsed, decided with this many examples, or fits no target.
        DataError: A metric is unknown or needs targets that are not there.
    """
    claims = tuple(parse_claim(text) for text in require)
    asked = [claim.metric for claim in claims if claim.metric in METRICS]
    task = Task.NONE if split.targets is None else data.task
    chosen = tuple(dict.fromkeys([*(DEFAULTS[task] if metrics is None else metrics), *asked]))
    usable = [name for name, metric in METRICS.items() if task in metric.tasks]
    for name in chosen:
        if name not in usable:
            raise (ClaimError if name in asked else DataError)(
                f"A metric must fit the task {task.value!r}; got {name!r}. {suggest(name, usable)}"
            )
    for claim in claims:
        check_decidable(claim, len(split))
    return claims, chosen


def predict_split(
    model: Model,
    config: EngineConfig,
    split: Split,
    *,
    output: str | None = None,
    factory: "Callable[[], Module] | None" = None,
) -> Array:
    """Return one prediction per example `(n, ...)`, or the cosine of each pair of rows `(n,)`.

    Raises:
        DataError: The inputs do not fit the model, or it has no such output.
        EngineError: The model does not run.
    """
    names = [spec.name for spec in model.signature.outputs]
    name = output or names[0]
    if name not in names:
        raise DataError(
            f"An output must be one of the model's; got {name!r}. {suggest(name, names)}"
        )
    feeds = feeds_for(model.signature, split.inputs)
    session = open_session(model, config, factory=factory)
    try:
        found = run_rows(session, feeds, batch_rows=32, sort_by_length=True)[name]
    finally:
        session.close()
    if split.rows_per_example == 2:
        return cosine_rows(found[0::2], found[1::2])
    return found


def _check_answers(
    data: Data, split: Split, metrics: Sequence[str], before: Array, after: Array
) -> None:
    check_labels(data, split, after)
    check_alike(before, after)
    check_width(metrics, before)


def check_labels(data: Data, split: Split, predictions: Array) -> None:
    """Refuse labels that are no class of the model.

    Raises:
        DataError: A label is negative or not below the number of classes.
    """
    if data.task != Task.CLASSIFICATION or split.targets is None:
        return
    classes, low, high = predictions.shape[-1], split.targets.min(), split.targets.max()
    if low < 0 or high >= classes:
        raise DataError(
            f"Labels must be from 0 to {classes - 1}, the model has {classes} classes; got {low} "
            f"to {high}. Map the labels to the model's classes."
        )


def check_alike(before: Array, after: Array) -> None:
    """Refuse to compare outputs of different shapes.

    Raises:
        DataError: The models answer with different shapes, e.g. other numbers of classes.
    """
    if before.shape[1:] != after.shape[1:]:
        raise DataError(
            f"Both models must answer in one shape; got {list(before.shape[1:])} from the baseline "
            f"and {list(after.shape[1:])} from the candidate. Compare models of the same task."
        )


def evidence_from(
    baseline: Candidate,
    candidate: Candidate,
    *,
    data: Data,
    split: str,
    before: Array,
    after: Array,
    claims: Sequence[Claim],
    metrics: Sequence[str],
    measured: Latencies,
    more: Sequence[Comparison] = (),
    seed: int = 0,
    now: datetime | None = None,
    reference_config: EngineConfig | None = None,
    qualities: Sequence[Comparison] = (),
) -> Evidence:
    """Build evidence from predictions and latencies that exist already; runs no model.

    `qualities` saves the time of `compare_quality` where that was called with the same arguments.
    """
    examples = data.split(split)
    rows = list(qualities) or compare_quality(examples, metrics, before, after, seed=seed)
    rows.append(compare_sizes(baseline.model, candidate.model))
    rows += [*compare_latencies(measured, seed=seed), *more]
    facts = describe_machine()
    return Evidence(
        candidate.model.digest,
        baseline.model.digest,
        data.digest,
        machine_digest(facts),
        facts,
        candidate.config,
        baseline.config,
        tuple(rows),
        tuple(judge(claim, rows) for claim in claims),
        changed_examples(data, examples, before, after),
        seed,
        (now or datetime.now(UTC)).isoformat(timespec="seconds"),
        reference_config,
    )


def compare_quality(
    split: Split, metrics: Sequence[str], before: Array, after: Array, *, seed: int = 0
) -> list[Comparison]:
    """Return one row per metric, paired on the same examples."""
    return [quality(METRICS[m], before, after, split.targets, seed=seed) for m in metrics]


def _check_measured(claims: Sequence[Claim], *, timed: bool) -> None:
    for claim in claims:
        if claim.metric == "throughput" or ("latency" in claim.metric and not timed):
            raise ClaimError(
                f"{claim.text!r} must be about something compare measures; got a comparison "
                f"without {claim.metric}. Claim latency and leave measure_speed on."
            )
