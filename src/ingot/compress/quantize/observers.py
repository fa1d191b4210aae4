"""Observers: watch a tensor over the calibration data, then say which range its integers cover.

Each observer can be merged with another of its kind, so calibration can be split over workers.
"""

from collections.abc import Callable
from typing import Protocol, Self

import numpy as np

from ingot.compress.quantize._histogram import DyadicHistogram, l2_range
from ingot.core.errors import RecipeError
from ingot.core.names import suggest
from ingot.data.data import Array

Range = tuple[float, float]


class Observer(Protocol):
    """Watches one tensor, batch by batch."""

    def update(self, values: Array) -> None:
        """Take in one batch of any shape; empty batches change nothing.

        Raises:
            RecipeError: A value is NaN or infinite.
        """
        ...

    def merge(self, other: Self) -> None:
        """Take in what another observer of the same kind saw after this one."""
        ...

    def range(self) -> Range:
        """Return the lowest and highest value to represent.

        Raises:
            RecipeError: Nothing was observed.
        """
        ...


class MinMax:
    """Smallest and largest value ever seen: nothing is clipped."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def update(self, values: Array) -> None:
        """Widen the range to hold these values."""
        if values.size:
            low, high = _bounds(values)
            self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, other: Self) -> None:
        """Widen the range to hold the other's."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def range(self) -> Range:
        """Return the range seen."""
        return _seen(self.low, self.high)


class ChannelMinMax:
    """Smallest and largest value ever seen in each channel.

    Engines take one grid for a whole activation, and `range` is that of all channels together, as
    `MinMax` gives it. `channels` says what one grid per channel would cover: what SmoothQuant moves
    into weights, and what the grids of constant weights are made of.

    Args:
        axis: The channel axis.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis
        self.low = self.high = np.zeros(0)

    def update(self, values: Array) -> None:
        """Widen each channel's range to hold its values.

        Raises:
            RecipeError: There are more or fewer channels than before, or a value is not finite.
        """
        if values.size:
            _bounds(values)
            rows = np.moveaxis(np.atleast_1d(values), self.axis, -1)
            rows = rows.reshape(-1, rows.shape[-1])
            self._widen(rows.min(axis=0), rows.max(axis=0))

    def merge(self, other: Self) -> None:
        """Widen each channel's range to hold the other's."""
        if other.low.size:
            self._widen(other.low, other.high)

    def range(self) -> Range:
        """Return the range of all channels together."""
        return _seen(self.low.min(initial=np.inf), self.high.max(initial=-np.inf))

    def channels(self) -> tuple[Array, Array]:
        """Return the lowest and the highest value of each channel, `(channels,)` each.

        Raises:
            RecipeError: Nothing was observed.
        """
        self.range()
        return self.low, self.high

    def _widen(self, low: Array, high: Array) -> None:
        if self.low.size not in (0, low.size):
            raise RecipeError(
                f"Every batch must have the same channels; got {low.size} on axis {self.axis} "
                f"after {self.low.size}. Observe this tensor with min-max."
            )
        first = not self.low.size
        self.low = low if first else np.minimum(self.low, low)
        self.high = high if first else np.maximum(self.high, high)


class MovingAverage:
    """Exponential average of each batch's minimum and maximum, `m <- m + c (m_batch - m)`.

    Later batches count more, so the order matters; `merge` continues the sequence exactly.

    Args:
        momentum: `c`, the weight of a new batch.
    """

    def __init__(self, momentum: float = 0.01) -> None:
        self.momentum, self.batches = momentum, 0
        self.first = self.average = np.zeros(2)

    def update(self, values: Array) -> None:
        """Move towards this batch's range."""
        if not values.size:
            return
        batch = np.array(_bounds(values))
        if self.batches == 0:
            self.first = self.average = batch
        else:
            self.average = self.average + self.momentum * (batch - self.average)
        self.batches += 1

    def merge(self, other: Self) -> None:
        """Continue with the batches that the other saw."""
        if self.batches and other.batches:
            decay = (1 - self.momentum) ** other.batches
            self.average = other.average + decay * (self.average - other.first)
        elif other.batches:
            self.first, self.average = other.first, other.average
        self.batches += other.batches

    def range(self) -> Range:
        """Return the averaged range."""
        low, high = self.average if self.batches else (np.inf, -np.inf)
        return _seen(low, high)


class _Histogram:
    """Base of the observers that choose a range from the distribution."""

    def __init__(self) -> None:
        self.histogram = DyadicHistogram()

    def update(self, values: Array) -> None:
        """Count these values."""
        if values.size:
            self.histogram.add(values, *_bounds(values))

    def merge(self, other: Self) -> None:
        """Add the other's counts; exact, in any order."""
        self.histogram.merge(other.histogram)

    def range(self) -> Range:
        """Return the range that this observer's rule chooses."""
        low, high = _seen(self.histogram.low, self.histogram.high)
        return (low, high) if low == high else self._choose(low, high)

    def _choose(self, low: float, high: float) -> Range:
        raise NotImplementedError


class Histogram(_Histogram):
    """The range with the least squared error, found by narrowing from the full one.

    Density is taken constant inside a bin. Starting at the full range, the side that loses fewer
    samples is narrowed in quantile steps of 1e-5 while the expected squared rounding and clipping
    error goes down. The rule is that of PyTorch's `HistogramObserver`;
    the bins differ, see `DyadicHistogram`.
    """

    def _choose(self, low: float, high: float) -> Range:
        return l2_range(self.histogram, low, high)


class Percentile(_Histogram):
    """Quantiles of what was seen, e.g. 0.01 % to 99.99 %.

    Args:
        fraction: Share of values clipped on each side.
    """

    def __init__(self, fraction: float = 1e-4) -> None:
        super().__init__()
        self.fraction = fraction

    def _choose(self, low: float, high: float) -> Range:
        a, b = (self.histogram.quantile(q) for q in (self.fraction, 1 - self.fraction))
        first = min(max(low, a), high)  # edges of bins round past the values at tiny ranges
        return first, max(first, min(high, b))


class MeanSquare(_Histogram):
    """The shrink factor in {1.0 … 0.3} of the full range with the least error of x - x^.

    Args:
        power: Exponent of the error: 2 is the squared error, 2.4 weighs large errors more.
    """

    FACTORS = np.arange(1.0, 0.29, -0.02)

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def _choose(self, low: float, high: float) -> Range:
        errors = [self._error(r * low, r * high) for r in self.FACTORS]
        best = float(self.FACTORS[int(np.argmin(errors))])
        return best * low, best * high

    def _error(self, low: float, high: float) -> float:
        low, high = min(low, 0.0), max(high, 0.0)
        x, scale = self.histogram.centers, (high - low) / 255
        restored = np.clip(np.rint((x - low) / scale), 0, 255) * scale + low
        return float((self.histogram.counts * np.abs(x - restored) ** self.power).sum())


class Entropy(_Histogram):
    """The symmetric threshold whose 128-level copy diverges least from the original (KL).

    For i = 128 … 2048 of 2048 bins of |x|: P is the first i bins with the outliers added to the
    last; Q is P merged into 128 levels and spread back over the bins that are not empty. Bin 0
    counts as much as bin 1, because zeros cost nothing on any grid.

    References:
        Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """

    BINS, LEVELS = 2048, 128

    def _choose(self, low: float, high: float) -> Range:
        peak = max(-low, high)
        index = (np.abs(self.histogram.centers) / peak * self.BINS).astype(np.int64)
        clipped = np.minimum(index, self.BINS - 1)
        counts = np.bincount(clipped, self.histogram.counts, self.BINS)
        counts[0] = counts[1]  # exact zeros after a ReLU would drown every other bin
        edges = np.arange(self.LEVELS, self.BINS + 1, 8)
        losses = [self._divergence(counts, int(i)) for i in edges]
        limit = float(edges[int(np.argmin(losses))]) / self.BINS * peak
        return max(low, -limit), min(high, limit)

    def _divergence(self, counts: Array, i: int) -> float:
        kept = counts[:i].astype(np.float64)
        p = kept.copy()
        p[-1] += counts[i:].sum()
        level = np.minimum(np.arange(i) * self.LEVELS // i, self.LEVELS - 1)
        filled = (kept > 0).astype(np.float64)
        mass = np.bincount(level, kept, self.LEVELS)
        share = np.bincount(level, filled, self.LEVELS)
        q = filled * (mass / np.maximum(share, 1))[level]
        if q.sum() == 0:
            return np.inf
        p, q = p / p.sum(), q / q.sum()
        used = p > 0
        return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))).sum())


OBSERVERS: dict[str, Callable[[], Observer]] = {
    "min-max": MinMax,
    "channel-min-max": ChannelMinMax,
    "moving-average": MovingAverage,
    "histogram": Histogram,
    "percentile": Percentile,
    "mse": MeanSquare,
    "entropy": Entropy,
}


def make_observer(name: str) -> Observer:
    """Return a fresh observer by name.

    Raises:
        RecipeError: The name is unknown.
    """
    if name not in OBSERVERS:
        raise RecipeError(
            f"observer must be the name of an observer; got {name!r}. " + suggest(name, OBSERVERS)
        )
    return OBSERVERS[name]()


def _bounds(values: Array) -> Range:
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RecipeError(
            f"Observed values must be finite; got a range of {low} to {high}. "
            "Look for NaN or infinity in the weights or the calibration data."
        )
    return low, high


def _seen(low: float, high: float) -> Range:
    if low > high:
        raise RecipeError(
            "An observer must see at least one value before it gives a range; got none. "
            "Give it calibration data."
        )
    return float(low), float(high)
