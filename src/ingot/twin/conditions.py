"""What must hold of a new version while it answers: read, and held against what was counted."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from ingot.core.digest import Json
from ingot.core.errors import ClaimError
from ingot.evaluate.claims import Claim, parse_claim
from ingot.evaluate.evidence import Interval
from ingot.evaluate.intervals import UNBOUNDED, difference_by_ends, proportion, ratio_by_ends
from ingot.twin.tally import Counts, Seen

Outcome = Literal["held", "broken", "undecided", "alone"]
_QUANTILES = {"latency": 0.5, "p95_latency": 0.95, "p99_latency": 0.99}
_UNITS = {"error_rate": "", "agreement": "", **dict.fromkeys(_QUANTILES, "ms")}
_LONG = {"p50_ms": "latency", "p95_ms": "p95_latency", "p99_ms": "p99_latency"}
_SHORT = re.compile(r"^p(50|95|99)_ms\b")
_TIMES = re.compile(r"(.+?)\s*([<>]=)\s*(\S+?)\s*x\s+baseline\s*")
_PLUS = re.compile(r"(.+?)\s*([<>]=)\s*baseline\s*\+\s*(.+)")


@dataclass(frozen=True, slots=True)
class Judgement:
    """One claim held against what was seen.

    Attributes:
        claim: As written.
        outcome: `broken` if the whole interval is beyond the bound, `held` if the whole interval
            is within, `undecided` if the bound is inside or nothing was seen; `alone` if it is
            about a baseline that no longer answers.
        value: What was seen.
        low: Lower end of its interval.
        high: Upper end.
        level: Confidence of the interval, after correction.
        n: Requests of the new version that it is from.
    """

    claim: str
    outcome: Outcome
    value: float = 0.0
    low: float = 0.0
    high: float = math.inf
    level: float = 0.0
    n: int = 0

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form; an end without bound is null."""
        high = None if self.high >= UNBOUNDED else self.high
        return {
            "claim": self.claim, "outcome": self.outcome, "value": min(self.value, UNBOUNDED),
            "low": self.low, "high": high, "level": self.level, "n": self.n,
        }  # fmt: skip

    def __str__(self) -> str:
        """Say it in a few words."""
        if not self.n:
            return f"{self.claim} is {self.outcome}"
        high = math.inf if self.high >= UNBOUNDED else self.high
        return (
            f"{self.claim} is {self.outcome}: {self.value:.4g} in [{self.low:.4g}, "
            f"{high:.4g}] from {self.n:,} requests"
        )


def read_condition(text: str) -> Claim:
    """Read a claim about a version in use, in the language of `ingot compare`.

    The metrics are `error_rate`, `latency` (the median), `p95_latency` and `p99_latency` (ms), and
    `agreement` with a shadow. `p95_ms` is short for `p95_latency`, `<= 1.2x baseline` for a ratio,
    and `<= baseline + 0.01` for a drop.

    Raises:
        ClaimError: It does not fit, or could not be judged.

    Examples:
        >>> read_condition("p95_ms <= 1.2x baseline").quantity
        'ratio'
        >>> read_condition("error_rate <= baseline + 0.01").quantity
        'drop'
    """
    words = text.strip()
    if found := _TIMES.fullmatch(words):
        words = f"{found[1]} ratio {found[2]} {found[3]}x"
    elif found := _PLUS.fullmatch(words):
        words = f"{found[1]} drop {found[2]} {found[3]}"
    claim = parse_claim(_SHORT.sub(lambda short: _LONG[short[0]], words), _UNITS)
    quantities = {"value"} if claim.metric == "agreement" else {"value", "ratio", "drop"}
    operator = ">=" if claim.metric == "agreement" else "<="
    if claim.quantity not in quantities or claim.operator != operator:
        raise ClaimError(
            f"A claim about a version in use must read '{claim.metric} {operator} ...', of the "
            f"version alone{' or of its baseline' if len(quantities) > 1 else ''}; got {text!r}. "
            "Write for example 'error_rate <= 0.01', 'p95_ms <= 1.2x baseline' or "
            "'agreement >= 0.99'."
        )
    return replace(claim, text=text.strip())


def judge(claim: Claim, seen: Seen, level: float) -> Judgement:
    """Hold a claim against what was seen.

    A rate has the exact interval of Clopper and Pearson, a percentile the interval of its order
    statistics; a comparison is made from the far ends of two intervals that share the error.

    Args:
        claim: From `read_condition`.
        seen: What was counted.
        level: Two-sided confidence.
    """
    is_relative = claim.metric == "agreement" or claim.quantity != "value"
    if is_relative and seen.baseline is None:
        return Judgement(claim.text, "alone")
    found = _interval(claim, seen, level)
    if found is None:
        return Judgement(claim.text, "undecided", level=level)
    low, high = found.low, found.high
    if claim.operator == ">=":
        outcome = _outcome(-high, -low, -claim.bound)
    else:
        outcome = _outcome(low, high, claim.bound)
    return Judgement(claim.text, outcome, found.value, low, high, level, found.n)


def _outcome(low: float, high: float, bound: float) -> Outcome:
    if low > bound:
        return "broken"
    return "held" if high <= bound else "undecided"


def _interval(claim: Claim, seen: Seen, level: float) -> Interval | None:
    if claim.metric == "agreement":
        return proportion(seen.agreed, seen.compared, level) if seen.compared else None
    measure = _errors if claim.metric == "error_rate" else _latency(_QUANTILES[claim.metric])
    if claim.quantity == "value":
        return measure(seen.canary, level)
    assert seen.baseline is not None
    each = (1 + level) / 2
    was, now = measure(seen.baseline, each), measure(seen.canary, each)
    if was is None or now is None:
        return None
    combine = difference_by_ends if claim.quantity == "drop" else ratio_by_ends
    return replace(combine(was, now), n=now.n)


def _errors(counts: Counts, level: float) -> Interval | None:
    return proportion(counts.errors, counts.requests, level) if counts.requests else None


def _latency(q: float) -> Callable[[Counts, float], Interval | None]:
    return lambda counts, level: counts.latency(q, level) if counts.timed else None
