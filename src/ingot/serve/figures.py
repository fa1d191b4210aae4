"""What the pages about figures say: how a model did in the last minutes."""

import math
import time
from collections.abc import Mapping

from ingot.core.digest import Json
from ingot.observe.reading import Selection, read_ended
from ingot.observe.stats import ACCURACY, KEEP_S, Key, Stats
from ingot.serve.endpoint import Endpoint
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


def stats_of_log(endpoint: Endpoint) -> Stats:
    """Return the figures of the last hour as the observation log tells them.

    For servers whose requests end in other processes. Rows that stand for several are counted so.

    Args:
        endpoint: Whose; without a log there are none.
    """
    stats = Stats(clock=time.time, wall=time.time, begun=time.time() - KEEP_S)
    path, version = endpoint.log, endpoint.version
    if path is None or not path.is_file():
        return stats
    since, key = time.time() - KEEP_S, Key(version.name, str(version.number))
    for row in read_ended(path, since, Selection(version.name, version.digest)):
        ended = row.time + row.latency_ms / 1e3
        if ended >= since:
            weight = 1 if row.inclusion == 1 else 1 / row.inclusion
            stats.add(key, row.status, row.latency_ms, at=ended, weight=weight)
    return stats


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
