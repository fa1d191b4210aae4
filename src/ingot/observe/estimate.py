"""Totals and means of all requests from a log that kept some of them.

Each row is weighted by one over the probability with which it was kept (Horvitz and Thompson, A
Generalization of Sampling Without Replacement From a Finite Universe, JASA 47, 1952). Rows that a
full queue or disk lost are not corrected for: `ingot log show` counts them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ingot.observe.observation import Observation
from ingot.observe.rules import FIRST_ERROR


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate of something about all requests.

    Attributes:
        value: The estimate.
        standard_error: Of it, from the sampling of units alone; 0 if everything was kept.
        rows: Rows it was made from.
    """

    value: float
    standard_error: float
    rows: int


def estimate_total(
    rows: Iterable[Observation], value: Callable[[Observation], float] = lambda _: 1.0
) -> Estimate:
    """Estimate the sum of something over all requests; without bias, over draws of the units.

    With t_u the sum over the kept rows of unit u and p the probability with which it was kept, the
    total is sum t_u / p and its variance is estimated by sum (1 - p) / p^2 t_u^2, for units are
    drawn independently. Refusals are drawn one by one: each of them is a unit.

    Args:
        rows: Observations that were kept.
        value: What is summed; the number of requests if not given.
    """
    total, count = 0.0, 0
    units: dict[tuple[str, float], float] = {}
    for row in rows:
        found = value(row)
        total += found / row.inclusion
        count += 1
        if row.inclusion < 1:
            is_drawn_alone = not row.unit_key or row.status >= FIRST_ERROR
            unit = (f"\0{row.request_id}" if is_drawn_alone else row.unit_key, row.inclusion)
            units[unit] = units.get(unit, 0.0) + found
    variance = sum((1 - p) / p**2 * found**2 for (_, p), found in units.items())
    return Estimate(total, math.sqrt(variance), count)


def estimate_mean(
    rows: Iterable[Observation], value: Callable[[Observation], float]
) -> Estimate | None:
    """Estimate the mean of something over all requests; None without rows.

    The ratio of two estimated totals (Hajek): its bias vanishes with the number of units.

    Args:
        rows: Observations that were kept.
        value: What is averaged.
    """
    kept = list(rows)
    if not kept:
        return None
    requests = estimate_total(kept).value
    mean = estimate_total(kept, value).value / requests
    residual = estimate_total(kept, lambda row: value(row) - mean)
    return Estimate(mean, residual.standard_error / requests, len(kept))
