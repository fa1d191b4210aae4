"""A flood of refusals leaves few rows, and estimates stay honest."""

import random
from dataclasses import replace

import pytest

from ingot.core.errors import ServeError
from ingot.observe.estimate import estimate_total
from ingot.observe.log import ObservationLog
from ingot.observe.observation import Observation
from ingot.observe.rules import LogRules
from ingot.observe.thinning import Thinning

REFUSED = Observation("r", 1.0, "digits", "sha256:v", unit_key="ada", status=429)


def thinned(seconds, *, seed=0, most=10.0):
    """Return what is kept of so many refusals in each second, and the thinning."""
    now = [0.0]
    thinning = Thinning(most, rng=random.Random(seed), clock=lambda: now[0])
    kept = []
    for n in seconds:
        rows = (replace(REFUSED, request_id=f"{now[0]}-{i}") for i in range(n))
        kept += map(thinning.pass_on, rows)
        now[0] += 1.0
    return [row for row in kept if row is not None], thinning


def test_refusals_up_to_the_rate_are_all_kept_whole():
    kept, thinning = thinned([10, 10, 3])

    assert len(kept) == 23
    assert {row.inclusion for row in kept} == {1.0}
    assert thinning.left_out == 0


def test_a_flood_is_bounded_and_what_is_left_out_is_counted():
    kept, thinning = thinned([10_000] * 5)

    # the first second keeps 10 (1 + ln 1000) = 79 on average, each later one 10: in all 119
    assert 60 < len(kept) < 180
    assert thinning.left_out == 50_000 - len(kept)


def test_a_flood_that_is_over_is_forgotten():
    kept, _ = thinned([1000, 0, 10])

    assert {row.inclusion for row in kept[-10:]} == {1.0}


def test_weighted_rows_count_a_flood_without_bias():
    # the mean of 200 estimates of 600 requests, whose own standard error is about 150
    totals = [estimate_total(thinned([200] * 3, seed=seed)[0]).value for seed in range(200)]

    mean = sum(totals) / len(totals)
    spread = (sum((one - mean) ** 2 for one in totals) / len(totals)) ** 0.5
    assert abs(mean - 600) < 4 * spread / 200**0.5


def test_the_standard_error_knows_that_refusals_are_drawn_one_by_one():
    # one unit sent both; p = 1/2, so the variance is 2 (1 - p) / p^2 = 4
    rows = [replace(REFUSED, request_id=name, inclusion=0.5) for name in "ab"]

    assert estimate_total(rows).standard_error == 2.0


@pytest.mark.parametrize("status", [200, 499, 500, 504])
def test_what_was_worked_on_is_never_thinned(status):
    thinning = Thinning(1.0, clock=lambda: 0.0)
    row = replace(REFUSED, status=status)

    assert all(thinning.pass_on(row) is row for _ in range(100))


def test_one_reason_does_not_thin_another():
    thinning = Thinning(5.0, clock=lambda: 0.0)
    for _ in range(1000):
        thinning.pass_on(REFUSED)
    others = [replace(REFUSED, status=404), replace(REFUSED, arm="4"), replace(REFUSED, status=503)]

    assert [thinning.pass_on(row) for row in others] == others


def test_a_log_thins_refusals_unless_told_otherwise(tmp_path):
    found = {}
    for name, rules in {"by default": None, "all": LogRules(refusals_per_s=float("inf"))}.items():
        with ObservationLog(tmp_path / name, rules=rules) as log:
            for i in range(3000):
                log.record(replace(REFUSED, request_id=str(i)))
            found[name] = (len(list(log.read())), log.thinned, log.dropped)

    rows, left_out, lost = found["by default"]
    assert rows < 300
    assert (rows + left_out, lost) == (3000, 0)
    assert found["all"] == (3000, 0, 0)


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ServeError, match="more than 0 a second"):
        LogRules(refusals_per_s=0)
