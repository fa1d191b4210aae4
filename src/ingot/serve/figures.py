"""What the pages about figures say: how a model did in the last minutes."""

import math
from collections.abc import Mapping

from ingot.core.digest import Json
from ingot.observe.stats import ACCURACY, Stats
from ingot.serve.problems import RequestError

_DEFAULT_S = 300.0


def show_stats(stats: Stats, model: str, number: str | None, query: Mapping[str, str]) -> Json:
    """Return the figures of a model, for each version and arm, and of each window if asked.

    Args:
        stats: What is counted.
        model: Name.
        number: Of the version; None for all of them.
        query: `window_s`, seconds back from now, and `windows=true` for a series.

    Raises:
        RequestError: `window_s` is no number of seconds, or reaches back further than there is.
    """
    window_s = _seconds(query.get("window_s", ""), stats.keep_s)
    is_series = query.get("windows", "false").lower() in {"true", "1"}
    found: list[Json] = []
    for key in stats.keys:
        if key.model != model or number not in {None, key.version}:
            continue
        only = key._asdict()
        total = stats.over(window_s, **only)
        row: dict[str, Json] = {"version": key.version, "arm": key.arm, **total.to_json()}
        if is_series:
            row["windows"] = [one.to_json() for one in stats.windows(total.start, **only)]
        found.append(row)
    return {"model": model, "window_s": window_s, "accuracy": ACCURACY, "versions": found}


def _seconds(text: str, most: float) -> float:
    try:
        value = float(text) if text else _DEFAULT_S
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise RequestError(
            f"window_s must be above 0 and at most {most:g} seconds; got {text[:40]!r}. Change it."
        )
    return value
