"""Metrics: what is measured on predictions, its unit, its range and which way is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingot.core.errors import DataError
from ingot.data.data import Array, Task
from ingot.evaluate.evidence import Direction
from ingot.evaluate.intervals import Floats, Statistic

# (predictions, reference) -> one value per example
PerExample = Callable[[Array, Array], Floats]
# (predictions, targets) -> a function of weights `(resamples, n)`
Build = Callable[[Array, Array], Statistic]


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to score predictions.

    Attributes:
        name: As claims write it.
        unit: `fraction` for bounded scores, `target` for errors in the target's own unit.
        low: Least possible value.
        high: Largest possible value.
        direction: Which way is better.
        tasks: Where it applies.
        build: From predictions `(n, ...)` and targets `(n, ...)` to a statistic of weights.
        per_example: 0/1 per example, for proportions only.
        is_versus_baseline: Whether the reference is the baseline's prediction, not the target.
    """

    name: str
    unit: str
    low: float
    high: float
    direction: Direction
    tasks: frozenset[Task]
    build: Build
    per_example: PerExample | None = None
    is_versus_baseline: bool = False

    @property
    def is_proportion(self) -> bool:
        """Whether each example is right or wrong, so that exact intervals apply."""
        return self.per_example is not None


def mean_of(values: Floats) -> Statistic:
    """Return the weighted mean of `values` `(n,)` as a statistic."""
    return lambda weights: weights @ values / weights.sum(axis=1)


def _top1(predictions: Array, targets: Array) -> Floats:
    return np.asarray(predictions.argmax(axis=-1) == targets, np.float64)


def _top5(predictions: Array, targets: Array) -> Floats:
    own = np.take_along_axis(predictions, np.asarray(targets)[:, None], axis=-1)
    return np.asarray((predictions > own).sum(axis=-1) < 5, np.float64)


def _agree(predictions: Array, baseline: Array) -> Floats:
    return np.asarray(predictions.argmax(axis=-1) == baseline.argmax(axis=-1), np.float64)


def _cosine(predictions: Array, baseline: Array) -> Statistic:
    return mean_of(cosine_rows(predictions, baseline))


def _r2(predictions: Array, baseline: Array) -> Statistic:
    """Return the share of the baseline's variance that is kept, all values of a row together.

    1 - sum |y - y0|^2 / sum |y0 - mean(y0)|^2, the mean per value over the examples as they are.
    """
    x = np.asarray(predictions, np.float64).reshape(len(predictions), -1)
    y = np.asarray(baseline, np.float64).reshape(len(baseline), -1)
    errors, spread = ((x - y) ** 2).sum(axis=1), ((y - y.mean(axis=0)) ** 2).sum(axis=1)
    if not spread.any():
        raise DataError(
            "The baseline must answer differently to different examples for r2; it gives one "
            "constant. Check its inputs, or score an output that varies."
        )

    def statistic(weights: Floats) -> Floats:
        whole: Floats = weights @ spread
        return np.where(whole > 0, 1 - weights @ errors / np.where(whole > 0, whole, 1), np.nan)

    return statistic


def check_width(names: Sequence[str], predictions: Array) -> None:
    """Refuse metrics that any answer would pass, or that need one class per example.

    Raises:
        DataError: `cosine` or `agreement` is asked of one value per example, or classes are asked
            of a table per example, such as scores of every token.
    """
    width = int(np.prod(predictions.shape[1:]))
    for name in names:
        if predictions.ndim > 2 and name in _CLASSES:
            raise DataError(
                f"{name!r} must have one row of scores per example; got shape "
                f"{predictions.shape[1:]} per example. Use cosine or r2."
            )
        if width < 2 and name in _WIDE:
            raise DataError(
                f"{name!r} must compare answers of two or more values; got {width} per example, "
                "which any answer would pass. Use r2, or let the network give one value per class."
            )


def cosine_rows(a: Array, b: Array) -> Floats:
    """Return the cosine of each pair of rows `(n, ...)`; two zero rows are equal, hence 1."""
    x = np.asarray(a, np.float64).reshape(len(a), -1)
    y = np.asarray(b, np.float64).reshape(len(b), -1)
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    alike = np.all(x == y, axis=1).astype(np.float64)
    cosine: Floats = np.where(size > 0, (x * y).sum(axis=1) / np.where(size > 0, size, 1), alike)
    return cosine


def _f1(predictions: Array, targets: Array) -> Statistic:
    k = np.arange(predictions.shape[-1])
    said, true = predictions.argmax(axis=-1)[:, None] == k, np.asarray(targets)[:, None] == k

    def statistic(weights: Floats) -> Floats:
        hits = weights @ (said & true).astype(np.float64)
        size = weights @ (said.astype(np.float64) + true)
        seen = size > 0
        each: Floats = 2 * hits / np.where(seen, size, 1)
        mean: Floats = each.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
        return mean

    return statistic


def _pearson(predictions: Array, targets: Array) -> Statistic:
    x, y = _flat(predictions, targets)
    x, y = x - x.mean(), y - y.mean()
    return lambda weights: _correlation(weights, x[None, :], y[None, :])


def _spearman(predictions: Array, targets: Array) -> Statistic:
    x, y = _flat(predictions, targets)
    rank_x, rank_y = _ranker(x), _ranker(y)
    return lambda weights: _correlation(weights, rank_x(weights), rank_y(weights))


def _ranker(values: Floats) -> Callable[[Floats], Floats]:
    """Return mid-ranks within each resample, from counts and without sorting it again."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    group: NDArray[np.intp] = np.empty(len(values), np.intp)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))

    def ranks(weights: Floats) -> Floats:
        size = np.add.reduceat(weights[:, order], starts, axis=1)
        middle: Floats = np.cumsum(size, axis=1) - (size - 1) / 2
        return middle[:, group]

    return ranks


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    both = (weights * x * y).sum(axis=1)
    size = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
    return np.where(size > 0, both / np.where(size > 0, size, 1), np.nan)


def _mse(predictions: Array, targets: Array) -> Statistic:
    return mean_of(_errors(predictions, targets, 2))


def _mae(predictions: Array, targets: Array) -> Statistic:
    return mean_of(_errors(predictions, targets, 1))


def _errors(predictions: Array, targets: Array, power: int) -> Floats:
    n = len(predictions)
    x = np.asarray(predictions, np.float64).reshape(n, -1)
    y = np.asarray(targets, np.float64).reshape(n, -1)
    if x.shape != y.shape:
        raise DataError(
            f"Targets must have as many values per example as the output; got {y.shape[1]} and "
            f"{x.shape[1]}. Name the output that the targets belong to."
        )
    error: Floats = (np.abs(x - y) ** power).mean(axis=1)
    return error


def _flat(predictions: Array, targets: Array) -> tuple[Floats, Floats]:
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (predictions, targets))
    if x.shape[1] != 1 or y.shape[1] != 1:
        raise DataError(
            f"A correlation must have one value per example; got {x.shape[1]} predictions and "
            f"{y.shape[1]} targets. Use mse or mae."
        )
    return x[:, 0], y[:, 0]


def _share(per_example: PerExample) -> Build:
    return lambda predictions, targets: mean_of(per_example(predictions, targets))


_CLASS = frozenset({Task.CLASSIFICATION})
_SCORE = frozenset({Task.REGRESSION, Task.SIMILARITY})
_LABELLESS = frozenset({Task.CLASSIFICATION, Task.NONE})
_ANY = frozenset(Task)
_INF = float("inf")
_CLASSES = frozenset(("accuracy", "agreement", "f1", "top5_accuracy"))
_WIDE = _CLASSES | {"cosine"}
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "fraction", 0, 1, "higher", _CLASS, _share(_top1), _top1),
        Metric("top5_accuracy", "fraction", 0, 1, "higher", _CLASS, _share(_top5), _top5),
        Metric("f1", "fraction", 0, 1, "higher", _CLASS, _f1),
        Metric("spearman", "fraction", -1, 1, "higher", _SCORE, _spearman),
        Metric("pearson", "fraction", -1, 1, "higher", _SCORE, _pearson),
        Metric("mse", "target", 0, _INF, "lower", _SCORE, _mse),
        Metric("mae", "target", 0, _INF, "lower", _SCORE, _mae),
        Metric("agreement", "fraction", 0, 1, "higher", _LABELLESS, _share(_agree), _agree, True),
        Metric("cosine", "fraction", -1, 1, "higher", _ANY, _cosine, None, True),
        Metric("r2", "fraction", -_INF, 1, "higher", _ANY, _r2, None, True),
    )
}
DEFAULTS: dict[Task, tuple[str, ...]] = {
    Task.CLASSIFICATION: ("accuracy", "agreement"),
    Task.REGRESSION: ("mse", "mae"),
    Task.SIMILARITY: ("spearman", "pearson"),
    Task.NONE: ("r2",),
}
