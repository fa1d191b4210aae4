"""The verb `compare`: run two models on the same data and machine, and say what changed."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from ingot.core.errors import ClaimError, DataError
from ingot.core.names import suggest
from ingot.core.progress import SILENT, Progress
from ingot.core.seeds import derive_seed
from ingot.data.data import Array, Data, Split, Task
from ingot.evaluate.claims import Claim, check_decidable, judge, parse_claim
from ingot.evaluate.evidence import ChangedExample, Comparison, Evidence, Interval
from ingot.evaluate.intervals import (
    UNBOUNDED,
    Floats,
    largest_influence,
    paired_bootstrap,
    paired_difference,
    proportion,
    proportion_ratio,
)
from ingot.evaluate.metrics import DEFAULTS, METRICS, Metric, cosine_rows
from ingot.models.feeds import feeds_for
from ingot.models.model import Model
from ingot.runtime.buckets import MASK, longest, run_rows
from ingot.runtime.cold_start import cold_start, footprint, peak_rss
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.feeds import feeds_at
from ingot.runtime.machine import describe_machine, machine_digest
from ingot.runtime.measure import Candidate, Measurement, Shape, latency_ratio, measure

if TYPE_CHECKING:
    from torch.nn import Module

_MOST_CHANGED = 50
_RUNS = 6  # fresh processes: their range is a 97 % interval of the median


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
    measured: Mapping[str, tuple[Measurement, Measurement]] | None = None,
) -> Evidence:
    """Return evidence of what changed from `baseline` to `candidate`.

    Claims and data are checked before any model runs.

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
        measured: Latencies by shape, baseline and candidate, instead of timing here.

    Raises:
        ClaimError: A claim cannot be parsed or decided.
        DataError: The data do not fit the models.
        EngineError: A model does not run.
    """
    examples = data.split(split)
    claims, chosen = plan(data, examples, require, metrics)
    _check_measured(claims, timed=measure_speed or measured is not None)
    config = config or EngineConfig()
    baseline_config = baseline_config or config
    progress.step("predicting with the baseline", 0, 4)
    before = predict_split(baseline, baseline_config, examples, output=output)
    progress.step("predicting with the candidate", 1, 4)
    after = predict_split(candidate, config, examples, output=output)
    check_labels(data, examples, after)
    check_alike(before, after)
    sides = (
        Candidate("baseline", baseline, baseline_config),
        Candidate("candidate", candidate, config),
    )
    progress.step("measuring latency", 2, 4)
    if measured is None and measure_speed:
        measured = _measure(sides, examples, shapes, seed)
    progress.step("measuring fresh processes", 3, 4)
    wanted = {claim.metric for claim in claims} | ({"memory", "cold_start"} if full else set())
    return evidence_from(
        *sides, data=data, split=split, before=before, after=after, claims=claims, metrics=chosen,
        measured=measured or {}, more=_processes(sides, wanted), seed=seed,
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
    measured: Mapping[str, tuple[Measurement, Measurement]],
    more: Sequence[Comparison] = (),
    seed: int = 0,
    now: datetime | None = None,
    reference_config: EngineConfig | None = None,
) -> Evidence:
    """Build evidence from predictions and latencies that exist already; runs no model."""
    examples = data.split(split)
    rows = [quality(METRICS[m], before, after, examples.targets, seed=seed) for m in metrics]
    sizes = (float(footprint(baseline.model)), float(footprint(candidate.model)))
    rows.append(_fixed("size", "bytes", sizes))
    for shape, pair in measured.items():
        rows += _speed(shape, *pair, seed=seed)
    rows += more
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


def quality(
    metric: Metric, before: Array, after: Array, targets: Array | None, *, seed: int = 0
) -> Comparison:
    """Compare one metric, paired over examples; exact where it is a proportion.

    Raises:
        ClaimError: The statistic is undefined on these predictions.
        DataError: The metric needs targets and there are none.
    """
    reference = before if metric.is_versus_baseline else targets
    if reference is None:
        raise DataError(f"{metric.name!r} must have targets; got none. Use agreement or cosine.")
    if metric.per_example is not None:
        was = metric.per_example(before, reference) > 0
        now = metric.per_example(after, reference) > 0
        n, b, c = len(was), int((was & ~now).sum()), int((~was & now).sum())
        ends = (
            proportion(int(was.sum()), n),
            proportion(int(now.sum()), n),
            paired_difference(b, c, n),
            proportion_ratio(b, c, int(was.sum()), n),
        )
    else:
        sign = 1.0 if metric.direction == "higher" else -1.0
        x, y = metric.build(before, reference), metric.build(after, reference)
        part = derive_seed(seed, "bootstrap", metric.name)
        n = len(before)
        least = largest_influence(x, n, seed=part)
        whole = abs(float(x(np.ones((1, n)))[0])) or 1.0
        ways = (
            (lambda p, q: p, 0.0),
            (lambda p, q: q, 0.0),
            (lambda p, q: sign * (p - q), least),
            (_divide, least / whole),
        )
        ends = tuple(
            paired_bootstrap(x, y, way, n=n, seed=part, least=floor) for way, floor in ways
        )  # type: ignore[assignment] # four of them
    return Comparison(metric.name, metric.unit, metric.direction, *ends)


def changed_examples(
    data: Data, split: Split, before: Array, after: Array
) -> tuple[ChangedExample, ...]:
    """Return at most fifty examples that changed class, those that became wrong first."""
    if data.task != Task.CLASSIFICATION:
        return ()
    was, now = before.argmax(axis=-1), after.argmax(axis=-1)
    target = split.targets
    rank = np.full(len(was), 1) if target is None else np.where(
        was == target, 0, np.where(now == target, 1, 2)
    )  # fmt: skip
    index = np.flatnonzero(was != now)
    index = index[np.argsort(rank[index], kind="stable")][:_MOST_CHANGED]

    def name(label: int) -> str:
        return data.classes[label] if 0 <= label < len(data.classes) else str(label)

    return tuple(
        ChangedExample(
            int(i), split.labels[i] if split.labels else f"example {i}", name(int(was[i])),
            name(int(now[i])), "" if target is None else name(int(target[i])),
        )
        for i in index
    )  # fmt: skip


def _divide(before: Floats, after: Floats) -> Floats:
    some = before != 0
    return np.where(some, after / np.where(some, before, 1), np.where(after == 0, 1.0, UNBOUNDED))


def _fixed(name: str, unit: str, values: tuple[float, float]) -> Comparison:
    a, b = values
    ends = (a, b, b - a, b / a)
    return Comparison(name, unit, "lower", *(Interval(v, v, v) for v in ends))


def _speed(shape: str, a: Measurement, b: Measurement, *, seed: int) -> list[Comparison]:
    ratio = Interval(
        *latency_ratio(b, a, seed=seed)[:3], method="paired-bootstrap", n=len(a.blocks_ms)
    )
    p50 = [_quantile(m.p50_ms, m.p50_low_ms, m.p50_high_ms, m.n) for m in (a, b)]
    p95 = [_quantile(m.p95_ms, m.p95_low_ms, m.p95_high_ms, m.n) for m in (a, b)]
    return [
        Comparison("latency", "ms", "lower", *p50, _minus(*p50), ratio, shape),
        Comparison("p95_latency", "ms", "lower", *p95, _minus(*p95), _over(*p95), shape),
    ]


def _quantile(value: float, low: float, high: float, n: int) -> Interval:
    return Interval(value, low, min(high, UNBOUNDED), method="order-statistics", n=n)


def _minus(a: Interval, b: Interval) -> Interval:
    high = min(b.high - a.low, UNBOUNDED)
    return Interval(b.value - a.value, max(b.low - a.high, -UNBOUNDED), high, method="ends", n=a.n)


def _over(a: Interval, b: Interval) -> Interval:
    high = min(b.high / max(a.low, 1e-300), UNBOUNDED)
    return Interval(b.value / a.value, b.low / a.high, high, method="ends", n=a.n)


def timing_feeds(
    model: Model, split: Split, shapes: Sequence[tuple[int, int | None]], *, seed: int = 0
) -> dict[str, dict[str, Array]]:
    """Return the inputs to time a model with, by shape label: real rows, repeated or cut to size.

    Args:
        model: Whose signature the inputs fit.
        split: Where rows come from; the first 64 examples are used.
        shapes: Batch and sequence; None means the length of the longest of those rows.
        seed: Fills inputs that the rows do not give.
    """
    sample = feeds_for(model.signature, split.take(range(min(len(split), 64))).inputs)
    mask = sample.get(MASK)
    length = longest(mask) if mask is not None and mask.ndim == 2 else None
    asked = [Shape(batch, sequence or length) for batch, sequence in shapes]
    return {
        shape.label: feeds_at(model, shape.batch, shape.sequence, sample=sample, seed=seed)
        for shape in asked
    }


def _measure(
    sides: Sequence[Candidate], split: Split, shapes: Sequence[tuple[int, int | None]], seed: int
) -> dict[str, tuple[Measurement, Measurement]]:
    feeds = timing_feeds(sides[0].model, split, shapes, seed=seed)
    found = measure(sides, feeds, seed=seed)
    half = len(feeds)
    return {m.shape: (m, found[half + i]) for i, m in enumerate(found[:half])}


def _processes(sides: Sequence[Candidate], wanted: set[str]) -> list[Comparison]:
    rows = []
    if "cold_start" in wanted:
        starts = [_spread(cold_start(s.model, s.config, runs=_RUNS).seconds) for s in sides]
        rows.append(
            Comparison("cold_start", "s", "lower", *starts, _minus(*starts), _over(*starts))
        )
    if "memory" in wanted:
        peaks = [_spread([float(peak_rss(s.model, s.config)) for _ in range(_RUNS)]) for s in sides]
        rows.append(Comparison("memory", "bytes", "lower", *peaks, _minus(*peaks), _over(*peaks)))
    return rows


def _spread(values: Sequence[float]) -> Interval:
    """Return median and range; the range of n runs holds the true median with 1 - 2 (1/2)^n."""
    n = len(values)
    level = 1 - 2 * 0.5**n
    return Interval(float(np.median(values)), min(values), max(values), level, "range", n)


def _check_measured(claims: Sequence[Claim], *, timed: bool) -> None:
    for claim in claims:
        if claim.metric == "throughput" or ("latency" in claim.metric and not timed):
            raise ClaimError(
                f"{claim.text!r} must be about something compare() measures; got a comparison "
                f"without {claim.metric}. Claim latency and leave measure_speed on."
            )
