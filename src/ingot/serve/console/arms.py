"""What a page says about a name whose requests are dealt: arms, canary, claims, shadow, decisions.

Everything comes from `TrafficDesk.describe` and the windows of each arm; nothing is decided here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ingot.observe.stats import Window
from ingot.serve.console.charts import Chart, Line
from ingot.serve.console.series import StatsSource
from ingot.serve.traffic.desk import TrafficDesk
from ingot.twin.conditions import read_condition

RECENT_S = 600.0  # a canary's first step sees few requests a minute
_DECISIONS, _READ = 8, 100  # shown, and read to find them among looks that changed nothing
_MOST_LINES = 4
_WORDS = {
    "split": "shares are fixed",
    "running": "the canary gets more while its claims hold",
    "done": "the canary kept its claims at every step",
    "rolled back": "the canary gets no requests",
    "by hand": "shares were set by hand; no rule looks after them",
}
Unit = Literal["ms", "share", "x"]


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One version that requests are dealt to.

    Attributes:
        number: Of the version.
        role: `canary`, or empty.
        share: Of the requests, from now on.
        recent: Those dealt to it in the last `RECENT_S` seconds.
        step_requests: Dealt to it since the shares were set.
        step_errors: Of them, those that a claim on `error_rate` counts: 422, 429 and 5xx.
    """

    number: int
    role: str
    share: float
    recent: Window
    step_requests: int
    step_errors: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a canary: its share, and `done`, `now`, `later`, `stopped` at or `left` out."""

    share: float
    state: str


@dataclass(frozen=True, slots=True)
class ClaimState:
    """One claim of a canary at the last look.

    Attributes:
        claim: As written.
        outcome: `held`, `undecided`, `broken`, or `alone` without a baseline to compare with.
        unit: Of the figures: milliseconds, a share, or times the baseline.
        bound: What it must not pass.
        value: What was seen; None before the first look, as are the next two.
        low: Lower end of its interval.
        high: Upper end; None too where there is no end.
        level: Confidence of the interval, after correction for looks.
        requests: It is from.
        is_difference: Whether the figures are what the canary has above its baseline.
    """

    claim: str
    outcome: str
    unit: Unit
    bound: float
    value: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.0
    requests: int = 0
    is_difference: bool = False

    @property
    def places(self) -> tuple[float, float, float, float]:
        """Where low, value, high and bound are on a line from 0 to 100."""
        low, value = self.low or 0.0, self.value or 0.0
        known = [low, value, self.bound, *(() if self.high is None else (self.high,))]
        left, right = min(0.0, *known), max(known)
        span = (right - left) * 1.08 or 1.0
        high = left + span if self.high is None else self.high
        a, b, c, d = (round(100 * (v - left) / span, 2) for v in (low, value, high, self.bound))
        return a, b, c, d


@dataclass(frozen=True, slots=True)
class OutputAgreement:
    """How often one output of the shadow agreed, and its largest difference; None without end."""

    name: str
    compared: int
    agreed: int
    largest_difference: float | None


@dataclass(frozen=True, slots=True)
class ShadowState:
    """What became of copies.

    Attributes:
        number: Version that gets them.
        share: Of the requests that are copied.
        compared: Copies that both sides answered.
        agreed: Those of them that say the same.
        dropped: Not run, because the shadow was busy.
        failed: Not comparable.
        refused: That the shadow did not answer with 200, though the version asked did.
        outputs: By output.
    """

    number: int
    share: float
    compared: int
    agreed: int
    dropped: int
    failed: int
    refused: int
    outputs: tuple[OutputAgreement, ...]


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One decision: when (UTC seconds since 1970), what, who, why, and the shares from then on."""

    time: float
    action: str
    who: str
    reason: str
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TrafficState:
    """How the requests for a name are dealt.

    Attributes:
        name: Of the model.
        state: `split`, `running`, `done`, `rolled back` or `by hand`.
        words: What that means.
        arms: Versions that requests are dealt to.
        canary: Its version; None without one.
        steps: Of the canary.
        claims: Of the canary, as the last look found them.
        looked: When that was, UTC seconds since 1970; None before the first look.
        shadow: What became of copies; None without a shadow.
        decisions: The newest first; of looks that changed nothing only the newest decision.
        next: Command to run when the canary has ended; empty before.
        can_roll_back: Whether there is a canary to take out and the visitor may.
        may_operate: Whether the visitor may.
    """

    name: str
    state: str
    words: str
    arms: tuple[ArmRow, ...]
    canary: int | None
    steps: tuple[Step, ...]
    claims: tuple[ClaimState, ...]
    looked: float | None
    shadow: ShadowState | None
    decisions: tuple[DecisionRow, ...]
    next: str
    can_roll_back: bool
    may_operate: bool


def read_traffic(desk: TrafficDesk, source: StatsSource, *, may_operate: bool) -> TrafficState:
    """Return how the requests for a name are dealt; reads the record on disk.

    Args:
        desk: What deals.
        source: Figures of each arm.
        may_operate: Whether the visitor may change it.
    """
    # Any: what `describe` gives is JSON
    found: dict[str, Any] = desk.describe(limit=_READ)
    canary = found["canary"]
    look = _last_look(found["decisions"], canary)
    is_in = canary is not None and found["weights"].get(str(canary["version"]), 0) > 0
    return TrafficState(
        desk.name, found["state"], _WORDS[found["state"]], _arms(found, source),
        None if canary is None else canary["version"], _steps(found), _claims(canary, look),
        None if look is None else look["time"], _shadow(found),
        tuple(
            DecisionRow(*(row[name] for name in ("time", "action", "who", "reason", "weights")))
            for row in _shown(found["decisions"])
        ),
        found["next"], is_in and may_operate, may_operate,
    )  # fmt: skip


def arm_charts(desk: TrafficDesk, source: StatsSource, *, since: float) -> tuple[Chart, ...]:
    """Return answers a second and latency of each arm over the last hour, at most four of them.

    Args:
        desk: What deals.
        source: Figures of each arm.
        since: Only windows that ended after it, UTC seconds since 1970.
    """
    numbers = [number for number, _ in desk.table.split.weights][:_MOST_LINES]
    by_arm = {n: source.windows(desk.name, str(n), since=since, arm=str(n)) for n in numbers}
    # a window may have ended between two readings: only those that every arm has are shown
    size = min((len(windows) for windows in by_arm.values()), default=0)
    times: tuple[float, ...] = ()
    rates, tails = [], []
    for number, windows in by_arm.items():
        times = tuple(round(one.end, 3) for one in windows[:size])
        rates.append(Line(f"version {number}", tuple(w.rate_per_s for w in windows[:size])))
        tails.append(Line(f"version {number}", tuple(w.p95_ms for w in windows[:size])))
    return (
        Chart("arm_rate", "Dealt requests per second", "/s", times, tuple(rates)),
        Chart("arm_p95", "p95 by version", "ms", times, tuple(tails)),
    )


def _shown(decisions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    changes = [row for row in decisions[:-1] if row["action"] != "stay"]
    return [*changes, *decisions[-1:]][: -_DECISIONS - 1 : -1]


def _arms(found: Mapping[str, Any], source: StatsSource) -> tuple[ArmRow, ...]:
    canary = found["canary"]["version"] if found["canary"] is not None else None
    none = {"requests": 0, "errors": 0}
    rows = []
    for text, share in found["weights"].items():
        counts = found["counts"].get(text, none)
        rows.append(ArmRow(
            int(text), "canary" if int(text) == canary else "", share,
            source.over(found["name"], text, RECENT_S, arm=text),
            counts["requests"], counts["errors"],
        ))  # fmt: skip
    return tuple(rows)


def _steps(found: Mapping[str, Any]) -> tuple[Step, ...]:
    if found["canary"] is None:
        return ()
    now = int(found["step"]) - 1

    def state(index: int) -> str:
        if found["state"] == "done" or index < now:
            return "done"
        words = ("now", "later") if found["state"] == "running" else ("stopped", "left")
        return words[index > now]

    return tuple(Step(share, state(i)) for i, share in enumerate(found["canary"]["steps"]))


def _last_look(
    decisions: Sequence[Mapping[str, Any]], canary: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Return the newest decision with judgements about this plan's claims since it began."""
    if canary is None:
        return None
    claims = [text.strip() for text in canary["require"]]
    begun = max((i for i, row in enumerate(decisions) if row["action"] == "start"), default=0)
    looks = [
        row for row in decisions[begun:] if [one["claim"] for one in row["judgements"]] == claims
    ]  # fmt: skip
    return looks[-1] if looks else None


def _claims(
    canary: Mapping[str, Any] | None, look: Mapping[str, Any] | None
) -> tuple[ClaimState, ...]:
    if canary is None:
        return ()
    judged = {} if look is None else {one["claim"]: one for one in look["judgements"]}
    return tuple(_claim(text, judged.get(text.strip())) for text in canary["require"])


def _claim(text: str, judged: Mapping[str, Any] | None) -> ClaimState:
    claim = read_condition(text)
    unit: Unit = "share" if claim.metric in {"error_rate", "agreement"} else "ms"
    if claim.quantity == "ratio":
        unit = "x"
    is_difference = claim.quantity == "drop"
    if judged is None or not judged["n"]:
        outcome = "undecided" if judged is None else judged["outcome"]
        return ClaimState(claim.text, outcome, unit, claim.bound, is_difference=is_difference)
    return ClaimState(
        claim.text, judged["outcome"], unit, claim.bound,
        value=judged["value"], low=judged["low"], high=judged["high"], level=judged["level"],
        requests=judged["n"], is_difference=is_difference,
    )  # fmt: skip


def _shadow(found: Mapping[str, Any]) -> ShadowState | None:
    plan, sums = found["shadow"], found["copies"]
    if plan is None or sums is None:
        return None
    outputs = tuple(OutputAgreement(name, **one) for name, one in sums["outputs"].items())
    pairs = {tuple(text.split("/")): n for text, n in sums["statuses"].items()}
    refused = sum(n for (given, other), n in pairs.items() if given == "200" != other)
    return ShadowState(
        plan["version"], plan["share"], sums["compared"], sums["agreed"], sums["dropped"],
        sums["failed"], refused, outputs,
    )  # fmt: skip
