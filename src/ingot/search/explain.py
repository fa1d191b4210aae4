"""The outcome in words: what was gained, what it cost, and why the rest was left behind."""

from collections.abc import Sequence

from ingot.core.units import show_bytes, show_ms
from ingot.evaluate.claims import parse_claim
from ingot.evaluate.evidence import Evidence
from ingot.search.contrast import contrast
from ingot.search.trial import Outcome

WORTH = 1.05  # a gain below five per cent is not called a gain


def headline(name: str, chosen: Outcome | None) -> str:
    """Return the title of a report, e.g. `MiniLM: 3.9x smaller, 2.1x faster, every claim held`."""
    if chosen is None or chosen.evidence is None:
        return f"{name}: nothing kept every claim"
    gains = [
        f"{gain:.1f}x {word}"
        for gain, word in (
            (_gain(chosen.evidence, "size"), "smaller"),
            (_gain(chosen.evidence, "latency"), "faster"),
        )
        if gain >= WORTH
    ]
    return f"{name}: {', '.join(gains) or 'no gain worth having'}, every claim held"


def summarize(chosen: Outcome | None, best_float: Outcome | None, tried: int) -> str:
    """Return the outcome in one or two sentences."""
    if chosen is None:
        return f"None of {tried} candidates kept every claim. The notes name the nearest."
    where = f"{chosen.trial.recipe.label} on {chosen.trial.config.label}"
    if chosen.trial.is_float:
        return (
            f"Of {tried} candidates the unchanged model on {chosen.trial.config.label} is the best "
            "that keeps every claim: on this network and machine compression does not pay."
        )
    assert chosen.evidence is not None
    gain = _gain(chosen.evidence, "latency")
    speed = (
        f"{gain:.2f} times as fast as the best float path"
        if gain >= 1
        else f"{1 / gain:.2f} times as slow as the best float path"
    )
    against = f" ({best_float.trial.config.label})" if best_float else ""
    size = _gain(chosen.evidence, "size")
    return f"Of {tried} candidates, {where} was kept: {size:.2f} times smaller, {speed}{against}."


def explain(outcomes: Sequence[Outcome], chosen: Outcome | None, metric: str) -> tuple[str, ...]:
    """Return sentences: the choice, what another would do, what broke a claim or failed."""
    notes = _nearest(outcomes) if chosen is None or chosen.trial.is_float else []
    if chosen is not None and chosen.latency is not None and chosen.quality is not None:
        notes.append(
            f"{chosen.trial.label} was kept: {show_ms(chosen.latency.value)}, {metric} "
            f"{chosen.quality.value:.4f}, {show_bytes(chosen.size_bytes)}."
        )
        notes += contrast(outcomes, chosen, metric)
        notes += _faster_but_worse(outcomes, chosen, metric)
    notes += [
        f"{o.trial.label} could not be used: {o.reason}" for o in outcomes if not o.ran and o.reason
    ]
    return tuple(notes)


def _nearest(outcomes: Sequence[Outcome]) -> list[str]:
    """Return which compressed candidate came nearest to the claims, and what is left to try."""
    broken = [o for o in outcomes if o.passed is False and o.evidence and not o.trial.is_float]
    if not broken:
        return []
    near = min(broken, key=_miss)
    return [
        f"Nearest to the claims came {near.trial.label}: {near.reason} Every rung of post-training "
        "compression was tried. What is left is training with the integers in the network "
        "(quantization-aware training), more minutes for fewer layers, or a wider claim."
    ]


def _miss(outcome: Outcome) -> float:
    """Return by how much a candidate misses its claims, relative to their bounds."""
    assert outcome.evidence is not None
    missed = [v for v in outcome.evidence.verdicts if not v.passed]
    bounds = [parse_claim(v.claim).bound for v in missed]
    return sum(
        abs(v.bound - bound) / max(abs(bound), 1e-3)
        for v, bound in zip(missed, bounds, strict=True)
    )


def _faster_but_worse(outcomes: Sequence[Outcome], chosen: Outcome, metric: str) -> list[str]:
    assert chosen.latency is not None
    faster = [
        o
        for o in outcomes
        if o.passed is False and o.latency and o.latency.value < chosen.latency.value
    ]
    return [
        f"{o.trial.label} is faster ({show_ms(o.latency.value)}) but breaks a claim: {o.reason}"
        for o in faster
        if o.latency
    ]


def _gain(evidence: Evidence, metric: str) -> float:
    row = evidence.find(metric)
    return 1 / row.ratio.value if row and row.ratio.value > 0 else 1.0
