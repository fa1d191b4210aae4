"""Claims about a version in use, and what is counted for them."""

import math
import random

import numpy as np
import pytest

from ingot.core.errors import ClaimError
from ingot.evaluate.intervals import proportion
from ingot.runtime.quantiles import quantile_interval
from ingot.twin.conditions import judge, read_condition
from ingot.twin.tally import Counts, Seen, Tally


@pytest.mark.parametrize(
    ("text", "metric", "quantity", "bound"),
    [
        ("error_rate <= 0.01", "error_rate", "value", 0.01),
        ("p95_ms <= 50", "p95_latency", "value", 50.0),
        ("p99 latency <= 0.2 s", "p99_latency", "value", 200.0),
        ("p50_ms<=5", "latency", "value", 5.0),
        ("p95_ms <= 1.2x baseline", "p95_latency", "ratio", 1.2),
        ("p95 latency ratio <= 1.2", "p95_latency", "ratio", 1.2),
        ("error_rate <= baseline + 0.01", "error_rate", "drop", 0.01),
        ("p95_ms <= baseline + 5 ms", "p95_latency", "drop", 5.0),
        ("agreement >= 0.99", "agreement", "value", 0.99),
    ],
)
def test_claims_are_read_in_the_language_of_compare(text, metric, quantity, bound):
    claim = read_condition(text)

    assert (claim.text, claim.metric, claim.quantity) == (text, metric, quantity)
    assert claim.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("accuracy >= 0.9", "Valid: agreement, error_rate"), ("p95_ms >= 5", "must read"),
        ("agreement <= 0.9", "'agreement >= ...'"), ("agreement ratio >= 0.9", "must read"),
        ("error_rate gain <= 0.1", "must read"), ("p95_ms <= 5 m", "unit"), ("", "must read"),
        ("error_rate <= 1 %", "per cent"), ("p95_ms <= 1e999", "finite"),
    ],
)  # fmt: skip
def test_claims_that_nothing_is_counted_for_are_refused(text, complaint):
    with pytest.raises(ClaimError, match=complaint):
        read_condition(text)


def judged(text, canary, baseline=None, **more):
    return judge(read_condition(text), Seen(0.0, canary, baseline, **more), 0.95)


def test_a_rate_is_judged_by_its_exact_interval():
    found = judged("error_rate <= 0.02", Counts(500, 10))
    exact = proportion(10, 500)

    assert (found.low, found.high, found.outcome) == (exact.low, exact.high, "undecided")
    assert judged("error_rate <= 0.04", Counts(500, 10)).outcome == "held"
    assert judged("error_rate <= 0.009", Counts(500, 10)).outcome == "broken"


def test_a_difference_of_rates_is_judged_by_the_far_ends_of_two_wider_intervals():
    found = judged("error_rate <= baseline + 0.01", Counts(400, 40), Counts(4000, 40))
    was, now = proportion(40, 4000, 0.975), proportion(40, 400, 0.975)

    assert (found.low, found.high) == (now.low - was.high, now.high - was.low)
    assert (found.outcome, found.n) == ("broken", 400)


def test_agreement_is_judged_from_below():
    assert (
        judged("agreement >= 0.9", Counts(), Counts(), compared=200, agreed=198).outcome == "held"
    )
    assert (
        judged("agreement >= 0.9", Counts(), Counts(), compared=200, agreed=100).outcome == "broken"
    )
    assert judged("agreement >= 0.9", Counts(), Counts()).outcome == "undecided"
    assert judged("agreement >= 0.9", Counts(), None, compared=9, agreed=9).outcome == "alone"


@pytest.mark.parametrize("text", ["error_rate <= 0.5", "p95_ms <= 5", "p95_ms <= 2x baseline"])
def test_nothing_counted_is_undecided(text):
    assert judged(text, Counts(), Counts()).outcome == "undecided"


def test_the_interval_of_a_percentile_holds_that_of_the_order_statistics():
    rng = np.random.default_rng(5)
    times_s, tally = rng.lognormal(-5, 0.5, 2000), Tally()
    for seconds in times_s:
        tally.count(200, float(seconds))

    for q in (0.5, 0.95, 0.99):
        value, low, high = quantile_interval(times_s * 1e3, q)
        found = tally.counts().latency(q, 0.95)
        assert low / 1.0203 <= found.low <= low
        assert high <= found.high <= high * 1.0203
        assert found.value == pytest.approx(value, rel=0.03)


def test_too_few_requests_give_a_percentile_no_upper_end():
    found = judged("p99_ms <= 50", Counts(10, 0, {0: 10}))

    assert (found.high, found.outcome) == (math.inf, "undecided")
    assert found.to_json()["high"] is None


def test_only_faults_of_the_server_count_as_errors():
    tally = Tally()
    for status in (200, 400, 401, 403, 404, 413, 415, 422, 429, 499, 500, 503, 504):
        tally.count(status, 0.001)
    counts = tally.counts()

    assert (counts.requests, counts.errors) == (6, 5)
    assert counts.timed == 2  # the answer, and the one that came too late


def test_counts_read_before_do_not_grow():
    tally = Tally()
    tally.count(200, 0.001)
    counts = tally.counts()
    for _ in range(random.Random(0).randrange(5, 9)):
        tally.count(200, 0.001)

    assert (counts.requests, counts.timed) == (1, 1)


def test_a_latency_of_zero_is_counted():
    tally = Tally()
    tally.count(200, 0.0)

    assert tally.counts().latency(0.5, 0.95).value < 1e-5
