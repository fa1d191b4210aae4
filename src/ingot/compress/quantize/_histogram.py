"""A histogram that grows with what it sees and can be merged exactly."""

import numpy as np

from ingot.data.data import Array

CELLS = 4096


class DyadicHistogram:
    """Counts over bins whose width is a power of two and whose edges are multiples of it.

    When the range outgrows `CELLS` bins, neighbours are joined and the width doubles, so no count
    is ever split: the result does not depend on the order of the data, and merging is exact. At
    least half of `CELLS` bins cover the final range.

    Attributes:
        counts: Values per bin, int64.
        width: Bin width, a power of two.
        start: Index of the first bin: it covers `start * width` to `(start + 1) * width`.
        low: Smallest value seen.
        high: Largest value seen.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(0, np.int64)
        self.width, self.start = 0.0, 0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Array, low: float, high: float) -> None:
        """Count finite values that lie between `low` and `high`."""
        self._cover(low, high, 0.0)
        index = np.floor(values.reshape(-1) * np.float64(1 / self.width)).astype(np.int64)
        self.counts += np.bincount(index - self.start, minlength=len(self.counts))

    def merge(self, other: "DyadicHistogram") -> None:
        """Add the other's counts."""
        if not len(other.counts):
            return
        self._cover(other.low, other.high, other.width)
        _pour(other, self.counts, self.start, self.width)

    @property
    def centers(self) -> Array:
        """Middle of each bin."""
        return (np.arange(len(self.counts)) + self.start + 0.5) * self.width

    def quantile(self, fraction: float) -> float:
        """Return the value below which this fraction lies, density constant inside a bin."""
        total = np.concatenate([[0], np.cumsum(self.counts)])
        edges = (np.arange(len(total)) + self.start) * self.width
        return float(np.interp(fraction * total[-1], total, edges))

    def _cover(self, low: float, high: float, width: float) -> None:
        low, high = min(low, self.low), max(high, self.high)
        width = max(width, self.width, _least_width(low, high))
        while np.floor(high / width) - np.floor(low / width) >= CELLS:
            width *= 2
        start = int(np.floor(low / width))
        counts = np.zeros(int(np.floor(high / width)) - start + 1, np.int64)
        if len(self.counts):
            _pour(self, counts, start, width)
        self.counts, self.width, self.start, self.low, self.high = counts, width, start, low, high


def _pour(source: DyadicHistogram, counts: Array, start: int, width: float) -> None:
    """Add the counts of `source` to wider bins; floats, because a ratio of widths may pass 2^63."""
    cells = np.arange(len(source.counts)) + float(source.start)
    index = np.floor(cells * (source.width / width)).astype(np.int64) - start
    used = source.counts > 0
    np.add.at(counts, index[used], source.counts[used])


def _least_width(low: float, high: float) -> float:
    # A constant tensor still needs a width: one that float32 can tell apart at its magnitude.
    span = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-30)
    return float(2.0 ** np.ceil(np.log2(span / CELLS)))


def l2_range(
    histogram: DyadicHistogram, low: float, high: float, *, levels: int = 256, step: float = 1e-5
) -> tuple[float, float]:
    """Narrow the full range while the expected squared error falls.

    Args:
        histogram: What was seen.
        low: Smallest value seen.
        high: Largest value seen.
        levels: Integers of the destination grid.
        step: Share of the samples given up per step, on the side that loses more bins by it.

    Returns:
        Lowest and highest value to represent.
    """
    counts = histogram.counts.astype(np.float64)
    cumulative = np.cumsum(counts) / counts.sum()
    first, last, below, above = 0, len(counts) - 1, 0.0, 1.0
    best = _l2_error(counts, first, last, levels)
    while below < above:
        left = int(np.searchsorted(cumulative, below + step))
        right = int(np.searchsorted(cumulative, above - step, side="right"))
        left, right = min(max(left, first), last), max(min(right, last), first)
        if left - first > last - right:
            new, below = (left, last), below + step
        else:
            new, above = (first, right), above - step
        if new == (first, last):
            continue
        error = _l2_error(counts, *new, levels)
        if error > best:
            break
        best, (first, last) = error, new
    start, width = histogram.start, histogram.width
    return max(low, (first + start) * width), min(high, (last + start + 1) * width)


def _l2_error(counts: Array, first: int, last: int, levels: int) -> float:
    """Integral of the squared distance to the nearest level, in units of bin width squared."""
    step = (last - first + 1) / levels
    begin = np.arange(len(counts)) - float(first)
    end = begin + 1
    of_begin = np.clip(np.floor(begin / step), 0, levels - 1)
    of_end = np.clip(np.floor(end / step), 0, levels - 1)
    half = step / 2
    area = half**3 - (begin - (of_begin + 0.5) * step) ** 3
    area += (of_end - of_begin - 1) * 2 * half**3
    area += (end - (of_end + 0.5) * step) ** 3 + half**3
    return float((counts * area).sum() / 3)
