import math
import statistics
from dataclasses import replace

import pytest

from ingot.observe.estimate import Estimate, estimate_mean, estimate_total
from ingot.observe.observation import Observation
from ingot.observe.rules import LogRules

ONE = Observation("r", 1.0, "digits", "sha256:v")


def population():
    """Return 60 units of 1 to 6 requests whose latency grows with the unit; some fail."""
    return [
        replace(ONE, request_id=f"{u}-{i}", unit_key=f"u{u}", latency_ms=float(u),
                status=500 if (u + i) % 9 == 0 else 200)
        for u in range(60) for i in range(1 + u % 6)
    ]  # fmt: skip


def draws(tmp_path, n=400, sample=0.3):
    """Give what is kept of the population under many salts."""
    for salt in range(n):
        sieve = LogRules(sample=sample, salt=str(salt)).sieve(tmp_path / "log")
        yield [row for one in population() if (row := sieve.pass_on(one)) is not None]


def test_a_total_weights_each_row_by_one_over_its_probability():
    rows = [replace(ONE, inclusion=0.25, latency_ms=3.0), replace(ONE, status=500)]

    assert estimate_total(rows).value == 5.0
    assert estimate_total(rows, lambda row: row.latency_ms).value == 12.0


def test_the_standard_error_is_that_of_whole_units():
    # two requests of one unit and one of another, each kept with probability 1/2:
    # variance = (1 - p) / p^2 * (2^2 + 1^2) = 2 * 5
    rows = [replace(ONE, request_id=str(i), unit_key=u, inclusion=0.5)
            for i, u in enumerate(("a", "a", "b"))]  # fmt: skip

    assert estimate_total(rows).standard_error == pytest.approx(math.sqrt(10))


def test_everything_kept_is_counted_exactly():
    assert estimate_total(population()) == Estimate(len(population()), 0.0, len(population()))


@pytest.mark.parametrize("value", [lambda _: 1.0, lambda row: row.latency_ms,
                                   lambda row: float(row.status == 500)])  # fmt: skip
def test_totals_are_unbiased_over_draws_of_the_units(tmp_path, value):
    truth = sum(map(value, population()))

    found = [estimate_total(rows, value).value for rows in draws(tmp_path)]

    error = statistics.stdev(found) / math.sqrt(len(found))
    assert abs(statistics.mean(found) - truth) <= 3 * error + 1e-9


def test_the_standard_error_is_right_over_draws_of_the_units(tmp_path):
    found = [estimate_total(rows) for rows in draws(tmp_path)]

    spread = statistics.stdev(one.value for one in found)
    said = math.sqrt(statistics.mean(one.standard_error**2 for one in found))
    assert said == pytest.approx(spread, rel=0.15)


def test_a_mean_is_near_the_truth_where_the_plain_mean_of_the_log_is_not(tmp_path):
    rows = population()
    truth = sum(row.status == 500 for row in rows) / len(rows)

    found = [estimate_mean(kept, lambda row: float(row.status == 500)) for kept in draws(tmp_path)]
    plain = [sum(row.status == 500 for row in kept) / len(kept) for kept in draws(tmp_path, 50)]

    assert statistics.mean(one.value for one in found) == pytest.approx(truth, rel=0.05)
    assert statistics.mean(plain) > 1.8 * truth  # errors are always kept: they are over-represented


def test_there_is_no_mean_of_nothing():
    assert estimate_mean([], lambda _: 1.0) is None
    assert estimate_total([]) == Estimate(0.0, 0.0, 0)
