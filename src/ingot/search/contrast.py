"""Why this and not that: candidates that differ from the chosen one in a single choice."""

from collections.abc import Sequence

from ingot.core.digest import Json
from ingot.search.trial import Outcome

_WORDS: dict[tuple[str, Json], str] = {
    ("attention", True): "int8 attention",
    ("attention", False): "float attention",
    ("bias_correction", True): "bias correction",
    ("bias_correction", False): "no bias correction",
    ("smooth", 0.0): "no SmoothQuant",
    ("embeddings", 0): "float embedding tables",
    ("skip", ()): "every layer in integers",
    ("precision", "fp32"): "fp32 for what stays float",
    ("precision", "bf16"): "bf16 for what stays float",
}
_LAYERS = 3  # names that are listed before they are counted


def contrast(outcomes: Sequence[Outcome], chosen: Outcome, metric: str) -> tuple[str, ...]:
    """Return a sentence for every candidate that is the chosen one but for a single choice.

    E.g. `float attention was kept: int8 attention would change spearman by -0.0190 and latency by
    -8 %, and breaks a claim.`
    """
    found = []
    for other in outcomes:
        change = _single_change(chosen, other) if other.ran and chosen.ran else None
        if change is not None:
            found.append(_sentence(chosen, other, *change, metric=metric))
    return tuple(found)


def _sentence(chosen: Outcome, other: Outcome, mine: str, theirs: str, *, metric: str) -> str:
    assert chosen.quality is not None
    assert chosen.latency is not None
    assert other.quality is not None
    assert other.latency is not None
    quality = other.quality.value - chosen.quality.value
    latency = other.latency.value / chosen.latency.value - 1
    end = ", and breaks a claim" if other.passed is False else ""
    return (
        f"{mine} was kept: {theirs} would change {metric} by {quality:+.4f} and latency by "
        f"{100 * latency:+.0f} %{end}."
    )


def _single_change(chosen: Outcome, other: Outcome) -> tuple[str, str] | None:
    """Return the one choice in which two candidates differ, as words, or None."""
    mine, theirs = _choices(chosen), _choices(other)
    if mine is None or theirs is None or mine.keys() != theirs.keys():
        return None
    differ = [key for key in mine if mine[key] != theirs[key]]
    if len(differ) != 1:
        return None
    name = differ[0].rpartition(".")[2]
    return _say(name, mine[differ[0]]), _say(name, theirs[differ[0]])


def _choices(outcome: Outcome) -> dict[str, Json] | None:
    """Return every choice of a candidate by place and name; None for the unchanged model."""
    trial = outcome.trial
    if trial.is_float:
        return None
    found: dict[str, Json] = {f"run.{key}": value for key, value in trial.config.to_json().items()}
    for i, method in enumerate(trial.recipe.methods):
        settings = {f"{i}.{method.name}.{key}": value for key, value in method.settings.items()}
        found |= settings
    return found


def _say(name: str, value: Json) -> str:
    if name == "skip" and isinstance(value, list) and value:
        names = ", ".join(str(v) for v in value[:_LAYERS])
        more = f" and {len(value) - _LAYERS} more" if len(value) > _LAYERS else ""
        return f"{names}{more} left in float"
    key = () if isinstance(value, list) and not value else value
    words = None if isinstance(key, (list, dict)) else _WORDS.get((name, key))
    return words or f"{name}={value}"
