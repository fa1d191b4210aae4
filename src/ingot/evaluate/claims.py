"""Claims such as `accuracy drop <= 0.01`: kept only if the bad end of the interval keeps them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ingot.core.errors import ClaimError
from ingot.core.names import suggest
from ingot.evaluate.evidence import Comparison, Evidence, Verdict
from ingot.evaluate.intervals import UNBOUNDED, needed_n
from ingot.evaluate.metrics import METRICS

Quantity = Literal["value", "drop", "relative drop", "gain", "ratio", "speedup"]
MEASURED = {
    "latency": "ms",
    "p95_latency": "ms",
    "throughput": "items/s",
    "size": "bytes",
    "memory": "bytes",
    "cold_start": "s",
}
_SCALE = {
    "ms": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "s": {"ms": 1e-3, "s": 1.0},
    "bytes": {
        "B": 1.0, "bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9,
        "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    },
    "items/s": {"items/s": 1.0, "/s": 1.0},
}  # fmt: skip
_UNITS = dict.fromkeys(METRICS, "") | MEASURED
_QUANTITIES = ("drop", "gain", "ratio", "speedup")
_PATTERN = re.compile(
    r"\s*([A-Za-z0-9_ ]+?)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*"
)
_LEAST_BOOTSTRAP = 20  # fewer examples leave a percentile interval without meaning


@dataclass(frozen=True, slots=True)
class Claim:
    """A bound on one quantity.

    Attributes:
        text: As written.
        metric: `accuracy`, `latency`, ...
        quantity: `value` of the candidate, `drop`, `relative drop`, `gain`, `ratio` or `speedup`
            to the baseline.
        operator: `<=` or `>=`.
        bound: The number, in the metric's unit; a fraction of the baseline for a relative drop.
    """

    text: str
    metric: str
    quantity: Quantity
    operator: Literal["<=", ">="]
    bound: float


def parse_claim(text: str, units: Mapping[str, str] = _UNITS) -> Claim:
    """Read `<metric> [[relative] drop|gain|ratio|speedup] <=|>= <number>[unit]`.

    A drop is in the metric's own unit: half a point of accuracy is 0.005. A relative drop is a
    share of the baseline, 0.005 or 0.5 %; the sign `%` stands for nothing else.

    Args:
        text: The sentence.
        units: Every metric that there is, with its unit: `ms`, `s`, `bytes`, `items/s`, or none.

    Raises:
        ClaimError: The sentence does not fit, or names an unknown metric or unit.

    Examples:
        >>> parse_claim("accuracy drop <= 0.01").bound
        0.01
        >>> parse_claim("accuracy relative drop <= 0.5 %").bound
        0.005
        >>> parse_claim("p95 latency <= 5 ms").metric
        'p95_latency'
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ClaimError(
            f"A claim must read '<metric> [[relative] drop|gain|ratio|speedup] <=|>= "
            f"<number>[unit]'; got {text!r}. Write for example 'accuracy drop <= 0.01'."
        )
    words = match[1].split()
    quantity: Quantity = "value"
    if len(words) > 1 and words[-1] in _QUANTITIES:
        quantity = words.pop()  # type: ignore[assignment] # one of the literals
    if quantity == "drop" and len(words) > 1 and words[-1] == "relative":
        words.pop()
        quantity = "relative drop"
    metric = "_".join(words)
    if metric not in units:
        raise ClaimError(
            f"A claim must name a known metric; got {metric!r} in {text!r}. "
            + suggest(metric, units)
        )
    about = f"{metric} {quantity}"
    bound = float(match[3]) * _scale(text, about, units[metric], match[4])
    if not math.isfinite(bound):
        raise ClaimError(f"A claim must have a finite bound; got {text!r}. Write a smaller number.")
    return Claim(text.strip(), metric, quantity, match[2], bound)  # type: ignore[arg-type] # `<=` or `>=`


def check_decidable(claim: Claim, n: int, level: float = 0.95) -> None:
    """Refuse a claim on quality that even an unchanged candidate could not pass with `n` examples.

    Raises:
        ClaimError: The sample is too small; the size it would take is named. Or no sample is large
            enough.
    """
    if claim.metric not in METRICS:
        return
    metric = METRICS[claim.metric]
    least = 0 if metric.is_proportion else _LEAST_BOOTSTRAP
    if metric.is_proportion and claim.quantity == "value" and claim.operator == ">=":
        if claim.bound >= 1:
            raise ClaimError(
                f"{claim.text!r} must be below 1: no number of right answers shows that none is "
                f"ever wrong. Claim for example '{claim.metric} >= 0.99'."
            )
        if 0 < claim.bound < 1:
            least = math.ceil(math.log((1 - level) / 2) / math.log(claim.bound))
    elif metric.is_proportion:
        margin = {
            ("drop", "<="): claim.bound,
            ("relative drop", "<="): claim.bound,  # of a baseline of 1, the easiest there is
            ("ratio", ">="): 1 - claim.bound,
            ("gain", ">="): -claim.bound,
        }.get((claim.quantity, claim.operator), 0.0)
        # The ratio spends half of its error on the baseline, see proportion_ratio.
        is_divided = claim.quantity in {"ratio", "relative drop"}
        confidence = (1 + level) / 2 if is_divided else level
        least = needed_n(margin, confidence) if 0 < margin < 1 else 0
    if n < max(least, 2):
        raise ClaimError(
            f"{claim.text!r} must be decided on at least {max(least, 2):,} examples, even if none "
            f"changes; got {n:,}. Add examples or widen the claim."
        )


def judge(claim: Claim, comparisons: Sequence[Comparison]) -> Verdict:
    """Hold the claim against the bad end of the interval, at the worst setting measured.

    Raises:
        ClaimError: The metric was not measured.
    """
    rows = [row for row in comparisons if row.metric == claim.metric]
    if not rows:
        raise ClaimError(
            f"{claim.text!r} must be about something measured; got no {claim.metric!r}. "
            + suggest(claim.metric, {row.metric for row in comparisons})
        )
    ends = [(_bad_end(claim, row), row) for row in rows]
    worst = max if claim.operator == "<=" else min
    bound, row = worst(ends, key=lambda pair: pair[0])
    passed = bound <= claim.bound if claim.operator == "<=" else bound >= claim.bound
    what = claim.metric if claim.quantity == "value" else f"{claim.metric} {claim.quantity}"
    where = f" at {row.setting}" if row.setting else ""
    side = "at most" if claim.operator == "<=" else "at least"
    if abs(bound) >= UNBOUNDED and claim.quantity == "relative drop":
        reason = (
            f"{claim.metric} of the baseline must be above 0 for a relative drop; its interval "
            f"begins at {row.baseline.low:.4g}. Claim a drop instead."
        )
        return Verdict(claim.text, False, bound, reason)
    reason = (
        f"{what.capitalize()}{where} is {side} {bound:.4g} ({row.drop.level:.0%} confidence); "
        f"the claim {'holds' if passed else 'asks for'} {claim.operator} {claim.bound:g}."
    )
    return Verdict(claim.text, passed, bound, reason)


def judge_again(evidence: Evidence) -> tuple[Verdict, ...]:
    """Return the verdicts that the comparisons of this evidence lead to, not those it states."""
    return tuple(judge(parse_claim(v.claim), evidence.comparisons) for v in evidence.verdicts)


def _bad_end(claim: Claim, row: Comparison) -> float:
    top = claim.operator == "<="
    if claim.quantity == "drop":
        return row.drop.high if top else row.drop.low
    if claim.quantity == "relative drop":
        return _relative_drop(row, top=top)
    if claim.quantity == "gain":
        return -row.drop.low if top else -row.drop.high
    if claim.quantity == "ratio":
        return row.ratio.high if top else row.ratio.low
    if claim.quantity == "speedup":
        low, high = (row.ratio.low, row.ratio.high)
        if row.direction == "higher":
            return high if top else low
        return 1 / max(low if top else high, 1e-300)
    return row.candidate.high if top else row.candidate.low


def _relative_drop(row: Comparison, *, top: bool) -> float:
    """Return an end of drop / baseline; without bound where the baseline may not be above zero."""
    if row.baseline.low <= 0:
        return UNBOUNDED if top else -UNBOUNDED
    if row.direction == "lower":
        return (row.ratio.high if top else row.ratio.low) - 1
    return 1 - (row.ratio.low if top else row.ratio.high)


def _scale(text: str, about: str, of_metric: str, unit: str) -> float:
    """Return what a bound is multiplied with; `about` is the metric and the quantity."""
    if not unit:
        return 1.0
    metric, _, quantity = about.partition(" ")
    if unit == "%" and quantity != "relative drop":
        raise ClaimError(
            f"A per cent must be of the baseline, in a relative drop; got {text!r}. Write "
            f"'{metric} relative drop <= 0.5 %' for that, or a number without it: "
            f"'{metric} drop <= 0.005'."
        )
    known: Mapping[str, float] = _SCALE.get(of_metric, {})
    if quantity == "relative drop":
        known = {"%": 0.01}
    elif quantity in {"ratio", "speedup"}:
        known = {"x": 1.0}
    if unit not in known:
        raise ClaimError(
            f"The unit in {text!r} must fit {about}; got {unit!r}. "
            + (suggest(unit, known) if known else "Write a fraction without a unit, e.g. 0.01.")
        )
    return known[unit]
