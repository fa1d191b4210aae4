"""Quantiles of latencies with intervals that assume no distribution."""

import math
from collections.abc import Sequence

import numpy as np


def quantile_interval(
    values: Sequence[float], q: float, *, level: float = 0.95
) -> tuple[float, float, float]:
    """Return (quantile, low, high) where the ends are order statistics of the sample.

    The number of observations below the true quantile is binomial(n, q) whatever the
    distribution, so the l-th and u-th smallest value enclose it with at least `level` when
    P(B < l) and P(B >= u) are at most (1 - level) / 2 each.
    An end that the sample is too small to give is 0 or infinity: latencies are not negative.

    Args:
        values: Independent observations, at least one.
        q: Which quantile, 0 to 1.
        level: Two-sided confidence.

    References:
        Hahn and Meeker, Statistical Intervals, 1991, section 5.2.

    Examples:
        >>> quantile_interval(range(1, 11), 0.5)
        (5.5, 2.0, 9.0)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    first, last = quantile_ranks(n, q, level=level)
    low = float(ordered[first - 1]) if first >= 1 else 0.0
    high = float(ordered[last - 1]) if last <= n else math.inf
    return float(np.quantile(ordered, q)), low, high


def quantile_ranks(n: int, q: float, *, level: float = 0.95) -> tuple[int, int]:
    """Return the ranks, from 1, of the two order statistics that enclose a quantile.

    Rank 0 or n + 1 says that the sample is too small to give that end.

    Args:
        n: Independent observations, at least one.
        q: Which quantile, 0 to 1.
        level: Two-sided confidence.

    Examples:
        >>> quantile_ranks(10, 0.5)
        (2, 9)
    """
    from scipy.stats import binom  # scipy.stats takes longer to import than most sessions to open

    tail = (1 - level) / 2
    return int(binom.ppf(tail, n, q)), int(binom.ppf(1 - tail, n, q)) + 1
