"""Confidence intervals that keep their promise: exact for proportions, paired over examples."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.core.errors import ClaimError
from ingot.evaluate.evidence import Interval

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # weights `(resamples, n)` -> values `(resamples,)`

GAMMA = 1e-4  # error spent on the confidence set of the nuisance parameter
UNBOUNDED = float(np.finfo(np.float64).max)  # JSON has no infinity
_TAIL = 1e-9  # mass outside the enumerated counts, added to every p-value
_GRID = 21
_STEPS = 26
_MOST_LEFT_OUT = 1000
_CHUNK_CELLS = 2_000_000


def proportion(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact interval of one proportion.

    References:
        Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 26, 1934.

    Examples:
        >>> round(proportion(0, 100).high, 4)
        0.0362
    """
    from scipy.stats import beta

    _check_counts(successes, 0, n)
    half = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(half, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - half, successes + 1, n - successes))
    return Interval(successes / n, low, high, level, "clopper-pearson", n)


def paired_difference(b: int, c: int, n: int, level: float = 0.95) -> Interval:
    """Exact unconditional interval of p(b) - p(c), the drop of a paired proportion.

    Inverts two one-sided tests ordered by the score statistic. The chance psi of a disagreement is
    maximised over, on a grid of a Berger-Boos confidence set, and the error of that set is added to
    the p-value. Zero disagreements give an interval of non-zero width.

    Args:
        b: Examples that the baseline gets right and the candidate wrong.
        c: Examples that the baseline gets wrong and the candidate right.
        n: Examples.
        level: Two-sided confidence, at most 0.999.

    Raises:
        ClaimError: The counts do not fit, or the level is out of range.

    References:
        Chan and Zhang, Test-based exact confidence intervals for the difference of two binomial
        proportions, Biometrics 55, 1999. Tango, Statistics in Medicine 17, 1998. Berger and Boos,
        JASA 89, 1994.
    """
    _check_counts(b, c, n)
    if not 0 < level <= 0.999:
        raise ClaimError(f"level must be above 0 and at most 0.999; got {level!r}. Use 0.95.")
    return Interval(
        (b - c) / n,
        -_upper(c, b, n, level),
        _upper(b, c, n, level),
        level,
        "exact-unconditional",
        n,
    )


def score_statistic(b: Floats, c: Floats, n: int, difference: float) -> Floats:
    """Return Tango's score statistic of the hypothesis p(b) - p(c) = `difference`."""
    d = difference
    linear = b + c + (b - c - 2 * n) * d
    root = np.sqrt(np.maximum(linear**2 + 8 * n * c * d * (1 - d), 0))
    variance = np.maximum(2 * (linear + root) / (4 * n) + d - d * d, 0)
    scale = np.sqrt(n * variance)
    top = b - c - n * d
    return np.where(scale > 0, top / np.where(scale > 0, scale, 1), np.sign(top) * 1e9)


def needed_n(margin: float, level: float = 0.95) -> int:
    """Return the examples it takes to show a drop <= `margin` when no example changes.

    Raises:
        ClaimError: `margin` is not between 0 and 1.

    Examples:
        >>> needed_n(0.01)
        368
    """
    if not 0 < margin < 1:
        raise ClaimError(
            f"A margin must be above 0 and below 1; got {margin!r}. No number of unchanged "
            "examples shows a drop of at most zero."
        )
    return math.ceil(math.log((1 - level) / 2 - GAMMA - _TAIL) / math.log1p(-margin))


def paired_bootstrap(
    baseline: Statistic,
    candidate: Statistic,
    combine: Callable[[Floats, Floats], Floats],
    *,
    n: int,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    least: float = 0.0,
) -> Interval:
    """Percentile bootstrap over examples, the same resample for both models.

    Args:
        baseline: The statistic as a function of how often each example was drawn.
        candidate: The same for the candidate.
        combine: Difference, ratio or either one of the two.
        n: Examples.
        level: Two-sided confidence.
        resamples: Resamples.
        seed: Fixes the resamples.
        least: Half-width below which the interval is widened. Resampling examples that did not
            change says nothing of those that were not drawn; see `largest_influence`.

    Raises:
        ClaimError: There are fewer than two examples, or the statistic is undefined.
    """
    return paired_bootstraps(
        baseline,
        candidate,
        ((combine, least),),
        n=n,
        level=level,
        resamples=resamples,
        seed=seed,
    )[0]


def paired_bootstraps(
    baseline: Statistic,
    candidate: Statistic,
    ways: Sequence[tuple[Callable[[Floats, Floats], Floats], float]],
    *,
    n: int,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Several intervals from one set of resamples; see `paired_bootstrap`.

    Args:
        baseline: The statistic as a function of how often each example was drawn.
        candidate: The same for the candidate.
        ways: How the two are combined, each with its least half-width.
        n: Examples.
        level: Two-sided confidence.
        resamples: Resamples.
        seed: Fixes the resamples.

    Raises:
        ClaimError: There are fewer than two examples, or the statistic is undefined.
    """
    if n < 2:
        raise ClaimError(f"A bootstrap must have at least 2 examples; got {n}. Add examples.")
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // n)
    parts = []
    for start in range(0, resamples, step):
        weights = _resample(rng, min(step, resamples - start), n)
        parts.append((baseline(weights), candidate(weights)))
    x, y = (np.concatenate(side) for side in zip(*parts, strict=True))
    ones = np.ones((1, n))
    whole = baseline(ones), candidate(ones)
    found = []
    for combine, least in ways:
        value, drawn = float(combine(*whole)[0]), combine(x, y)
        drawn = drawn[np.isfinite(drawn)]
        if not math.isfinite(value) or len(drawn) < resamples / 2:
            raise ClaimError(
                "A statistic must be defined on the examples; got one that is not a number, e.g. "
                "the correlation of constant predictions. Check the model's output and the targets."
            )
        low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
        low, high = min(float(low), value - least), max(float(high), value + least)
        found.append(Interval(value, low, high, level, "paired-bootstrap", n))
    return tuple(found)


def largest_influence(statistic: Statistic, n: int, *, seed: int = 0) -> float:
    """Return the largest change of a statistic when one example is left out.

    The floor of a paired interval: had a single unseen example been answered differently, the
    statistic could have moved by about this much. Above 1,000 examples, 1,000 of them are tried.

    Args:
        statistic: A function of how often each example was drawn.
        n: Examples.
        seed: Which examples are tried when there are many.
    """
    tried = np.arange(n)
    if n > _MOST_LEFT_OUT:
        tried = np.random.default_rng(seed).choice(n, _MOST_LEFT_OUT, replace=False)
    whole = float(statistic(np.ones((1, n)))[0])
    largest, step = 0.0, max(1, _CHUNK_CELLS // n)
    for start in range(0, len(tried), step):
        part = tried[start : start + step]
        weights = np.ones((len(part), n))
        weights[np.arange(len(part)), part] = 0.0
        moved = np.abs(statistic(weights) - whole)
        largest = max(largest, float(moved[np.isfinite(moved)].max(initial=0.0)))
    return largest


def proportion_ratio(b: int, c: int, right: int, n: int, level: float = 0.95) -> Interval:
    """Conservative interval of candidate / baseline for a paired proportion.

    Divides the exact interval of the difference by that of the baseline, each at half the error
    (Bonferroni). A baseline that may be zero leaves the upper end unbounded (largest float).

    Args:
        b: Examples only the baseline gets right.
        c: Examples only the candidate gets right.
        right: Examples the baseline gets right.
        n: Examples.
        level: Two-sided confidence.
    """
    both = (1 + level) / 2
    drop, base = paired_difference(b, c, n, both), proportion(right, n, both)
    value = (right - b + c) / right if right else (1.0 if c == 0 else UNBOUNDED)
    if base.low <= 0:
        return Interval(value, 0.0, UNBOUNDED, level, "exact-bonferroni", n)
    ends = [1 - d / q for d in (drop.low, drop.high) for q in (base.low, base.high)]
    return Interval(value, max(0.0, min(ends)), max(ends), level, "exact-bonferroni", n)


def difference_by_ends(a: Interval, b: Interval) -> Interval:
    """Return b - a from the far ends of both: wider than a paired interval, and safe.

    Its level is at least 1 - (1 - level of a) - (1 - level of b).

    Examples:
        >>> found = difference_by_ends(Interval(0.5, 0.25, 0.75), Interval(1.0, 0.5, 1.5))
        >>> found.low, found.high
        (-0.25, 1.25)
    """
    high = min(b.high - a.low, UNBOUNDED)
    return Interval(b.value - a.value, max(b.low - a.high, -UNBOUNDED), high, method="ends", n=a.n)


def ratio_by_ends(a: Interval, b: Interval) -> Interval:
    """Return b / a from the far ends of both, neither of which is negative; see above.

    Examples:
        >>> found = ratio_by_ends(Interval(2.0, 1.0, 4.0), Interval(2.0, 2.0, 3.0))
        >>> found.low, found.high
        (0.5, 3.0)
    """
    low, high, value = (
        min(top / max(below, 1e-300), UNBOUNDED)
        for top, below in ((b.low, a.high), (b.high, a.low), (b.value, a.value))
    )
    return Interval(value, low, high, method="ends", n=a.n)


def _check_counts(b: int, c: int, n: int) -> None:
    if n < 1 or b < 0 or c < 0 or b + c > n:
        raise ClaimError(
            f"Counts must be non-negative and sum to at most n >= 1; got {b}, {c} of {n}. "
            "Count again."
        )


def _resample(rng: np.random.Generator, count: int, n: int) -> Floats:
    picks = rng.integers(0, n, (count, n)) + np.arange(count)[:, None] * n
    return np.bincount(picks.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _upper(b: int, c: int, n: int, level: float) -> float:
    """Largest difference that the one-sided test does not reject."""
    estimate = (b - c) / n
    if estimate >= 1:
        return 1.0
    half = (1 - level) / 2
    psi = proportion(b + c, n, 1 - GAMMA)
    low, high = estimate, 1.0
    for _ in range(3):
        low, high = _bisect(b, c, n, low, high, half=half, psi=(psi.low, psi.high))
        # A p-value that wiggles can come back: take the outermost difference that is accepted.
        beyond = high + (high - estimate) * np.linspace(0.01, 0.25, 8)
        again = [d for d in beyond if d < 1 and _p_value(b, c, n, d, (psi.low, psi.high)) > half]
        if not again:
            break
        low, high = max(again), 1.0
    return high


def _bisect(
    b: int, c: int, n: int, low: float, high: float, *, half: float, psi: tuple[float, float]
) -> tuple[float, float]:
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _p_value(b, c, n, middle, psi) > half:
            low = middle
        else:
            high = middle
        if high - low < 1e-4 * max(high - (b - c) / n, 1e-6):
            break
    return low, high


def _p_value(b: int, c: int, n: int, d: float, psi: tuple[float, float]) -> float:
    """Chance of a score as low as the observed one, if the difference is `d` or more."""
    from scipy.stats import binom

    first, last = max(psi[0], abs(d)), psi[1]
    if first > last:
        return GAMMA
    observed = float(score_statistic(np.float64(b), np.float64(c), n, d))  # type: ignore[arg-type] # a scalar array
    grid = np.unique(np.linspace(first, last, _GRID))
    total = np.arange(
        int(binom.ppf(_TAIL / 2, n, grid[0])), int(binom.isf(_TAIL / 2, n, grid[-1])) + 1
    )
    most = _most(total, n, d, observed)
    share = np.clip((grid + d) / (2 * np.maximum(grid, 1e-300)), 0, 1)
    weight = binom.pmf(total[None, :], n, grid[:, None])
    below = binom.cdf(most[None, :], total[None, :], share[:, None])
    return float(np.max((weight * below).sum(axis=1))) + GAMMA + _TAIL


def _most(total: NDArray[np.int64], n: int, d: float, observed: float) -> NDArray[np.int64]:
    """Largest b for each b + c whose score is not above the observed one, or -1.

    The score grows with b at fixed b + c, so the tail is one run of counts.
    """
    low: NDArray[Any] = np.full(len(total), -1)  # int64 counts
    high = total.copy()
    while (low < high).any():
        middle = -((-low - high) // 2)
        score = score_statistic(middle.astype(float), (total - middle).astype(float), n, d)
        inside = score <= observed + 1e-9
        low = np.where(inside & (low < high), middle, low)
        high = np.where(~inside & (low < high), middle - 1, high)
    return low
