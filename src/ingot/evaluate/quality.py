"""How good the answers are: one metric for two models, and the examples that changed."""

import numpy as np

from ingot.core.errors import DataError
from ingot.core.seeds import derive_seed
from ingot.data.data import Array, Data, Split, Task
from ingot.evaluate.evidence import ChangedExample, Comparison
from ingot.evaluate.intervals import (
    UNBOUNDED,
    Floats,
    largest_influence,
    paired_bootstraps,
    paired_difference,
    proportion,
    proportion_ratio,
)
from ingot.evaluate.metrics import Metric

_MOST_CHANGED = 50


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
        raise DataError(
            f"{metric.name!r} must have targets; got none. Use r2, agreement or cosine."
        )
    if metric.per_example is not None:
        return _proportions(metric, before, after, reference)
    sign = 1.0 if metric.direction == "higher" else -1.0
    x, y = metric.build(before, reference), metric.build(after, reference)
    part, n = derive_seed(seed, "bootstrap", metric.name), len(before)
    least = largest_influence(x, n, seed=part)
    whole = abs(float(x(np.ones((1, n)))[0])) or 1.0
    ways = (
        (lambda p, q: p, 0.0),
        (lambda p, q: q, 0.0),
        (lambda p, q: sign * (p - q), least),
        (_divide, least / whole),
    )
    was, now, drop, ratio = paired_bootstraps(x, y, ways, n=n, seed=part)
    return Comparison(metric.name, metric.unit, metric.direction, was, now, drop, ratio)


def _proportions(metric: Metric, before: Array, after: Array, reference: Array) -> Comparison:
    assert metric.per_example is not None
    was = metric.per_example(before, reference) > 0
    now = metric.per_example(after, reference) > 0
    n, b, c = len(was), int((was & ~now).sum()), int((~was & now).sum())
    return Comparison(
        metric.name,
        metric.unit,
        metric.direction,
        proportion(int(was.sum()), n),
        proportion(int(now.sum()), n),
        paired_difference(b, c, n),
        proportion_ratio(b, c, int(was.sum()), n),
    )


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
