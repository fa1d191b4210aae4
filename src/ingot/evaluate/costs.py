"""What running costs, as comparisons: latency, size, memory, cold start."""

from collections.abc import Mapping, Sequence

import numpy as np

from ingot.data.data import Array, Split
from ingot.evaluate.evidence import Comparison, Interval
from ingot.evaluate.intervals import UNBOUNDED, difference_by_ends, ratio_by_ends
from ingot.models.feeds import feeds_for
from ingot.models.model import Model
from ingot.runtime.buckets import MASK, longest
from ingot.runtime.cold_start import cold_start, footprint, peak_rss
from ingot.runtime.feeds import feeds_at
from ingot.runtime.measure import Candidate, Measurement, Shape, latency_ratio, measure

Latencies = Mapping[str, tuple[Measurement, Measurement]]

_RUNS = 6  # fresh processes: their range is a 97 % interval of the median


def compare_sizes(baseline: Model, candidate: Model) -> Comparison:
    """Compare the bytes on disk that serving needs; they have no spread."""
    a, b = float(footprint(baseline)), float(footprint(candidate))
    was, now, drop, ratio = (Interval(v, v, v) for v in (a, b, b - a, b / a))
    return Comparison("size", "bytes", "lower", was, now, drop, ratio)


def compare_latencies(measured: Latencies, *, seed: int = 0) -> list[Comparison]:
    """Compare p50, paired over interleaved rounds, and p95 of baseline and candidate per shape."""
    return [row for shape, pair in measured.items() for row in _speed(shape, *pair, seed=seed)]


def _speed(shape: str, a: Measurement, b: Measurement, *, seed: int) -> list[Comparison]:
    ratio = Interval(
        *latency_ratio(b, a, seed=seed)[:3], method="paired-bootstrap", n=len(a.blocks_ms)
    )
    was, now = (_quantile(m.p50_ms, m.p50_low_ms, m.p50_high_ms, m.n) for m in (a, b))
    p50 = Comparison("latency", "ms", "lower", was, now, difference_by_ends(was, now), ratio, shape)
    was, now = (_quantile(m.p95_ms, m.p95_low_ms, m.p95_high_ms, m.n) for m in (a, b))
    return [p50, _unpaired("p95_latency", "ms", was, now, shape)]


def _unpaired(
    metric: str, unit: str, was: Interval, now: Interval, setting: str = ""
) -> Comparison:
    """Compare two intervals by their ends: wider than a paired interval, and safe."""
    drop, ratio = difference_by_ends(was, now), ratio_by_ends(was, now)
    return Comparison(metric, unit, "lower", was, now, drop, ratio, setting)


def _quantile(value: float, low: float, high: float, n: int) -> Interval:
    return Interval(value, low, min(high, UNBOUNDED), method="order-statistics", n=n)


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


def measure_latencies(
    sides: Sequence[Candidate], split: Split, shapes: Sequence[tuple[int, int | None]], seed: int
) -> Latencies:
    """Time baseline and candidate, interleaved, on requests made of real rows; by shape."""
    feeds = timing_feeds(sides[0].model, split, shapes, seed=seed)
    found = measure(sides, feeds, seed=seed)
    half = len(feeds)
    return {m.shape: (m, found[half + i]) for i, m in enumerate(found[:half])}


def compare_processes(sides: Sequence[Candidate], wanted: set[str]) -> list[Comparison]:
    """Start fresh processes of each side and compare `cold_start` and `memory`, if wanted."""
    rows = []
    if "cold_start" in wanted:
        was, now = (spread(cold_start(s.model, s.config, runs=_RUNS).seconds) for s in sides)
        rows.append(_unpaired("cold_start", "s", was, now))
    if "memory" in wanted:
        was, now = (
            spread([float(peak_rss(s.model, s.config)) for _ in range(_RUNS)]) for s in sides
        )
        rows.append(_unpaired("memory", "bytes", was, now))
    return rows


def spread(values: Sequence[float]) -> Interval:
    """Return median and range; the range of n runs holds the true median with 1 - 2 (1/2)^n."""
    n = len(values)
    level = 1 - 2 * 0.5**n
    return Interval(float(np.median(values)), min(values), max(values), level, "range", n)
