import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta

from ingot.core.errors import ClaimError
from ingot.evaluate.claims import check_decidable, judge, judge_again, parse_claim
from ingot.evaluate.evidence import Comparison, Evidence, Interval
from ingot.evaluate.intervals import paired_difference
from ingot.evaluate.metrics import METRICS
from ingot.evaluate.quality import quality
from ingot.runtime.engine import EngineConfig


def row(metric, *, was=(0.9, 0.8, 0.95), now=(0.89, 0.79, 0.94), drop=(0.01, 0.0, 0.02),
        ratio=(0.5, 0.4, 0.6), unit="fraction", direction="higher", setting=""):  # fmt: skip
    ends = (Interval(*values) for values in (was, now, drop, ratio))
    return Comparison(metric, unit, direction, *ends, setting)


@pytest.mark.parametrize(
    ("text", "metric", "quantity", "operator", "bound"),
    [
        ("accuracy drop <= 0.01", "accuracy", "drop", "<=", 0.01),
        ("accuracy relative drop <= 0.5%", "accuracy", "relative drop", "<=", 0.005),
        ("accuracy relative drop <= 0.005", "accuracy", "relative drop", "<=", 0.005),
        ("p95 latency relative drop <= 3 %", "p95_latency", "relative drop", "<=", 0.03),
        ("accuracy>=.9", "accuracy", "value", ">=", 0.9),
        ("p95 latency <= 5 ms", "p95_latency", "value", "<=", 5.0),
        ("latency <= 250us", "latency", "value", "<=", 0.25),
        ("latency speedup >= 1.5x", "latency", "speedup", ">=", 1.5),
        ("size <= 25 MB", "size", "value", "<=", 25e6),
        ("memory <= 2 MiB", "memory", "value", "<=", 2 * 2**20),
        ("cold_start <= 400 ms", "cold_start", "value", "<=", 0.4),
        ("spearman gain >= -5e-3", "spearman", "gain", ">=", -0.005),
    ],
)
def test_a_claim_is_read(text, metric, quantity, operator, bound):
    claim = parse_claim(text)

    assert (claim.metric, claim.quantity, claim.operator) == (metric, quantity, operator)
    assert math.isclose(claim.bound, bound)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("acuracy drop <= 0.01", "accuracy"),
        ("latncy <= 5", "latency"),
        ("accuracy drop < 0.01", "must read"),
        ("accuracy", "must read"),
        ("latency <= 5 parsecs", "parsecs"),
        ("accuracy drop <= 1 %", "relative drop <= 0.5 %' for that, or .* drop <= 0.005'"),
        ("latency drop <= 5 %", "latency relative drop"),
        ("accuracy >= 90 %", "relative drop"),
        ("accuracy drop <= 1 pt", "Write a fraction"),
        ("accuracy relative gain <= 0.01", "accuracy_relative"),
        ("relative drop <= 0.01", "must name a known metric"),
        ("latency relative drop <= 1 ms", "Valid: %"),
        ("latency <= 1e999", "finite"),
    ],
)
def test_a_claim_that_cannot_be_read_says_what_to_write(text, words):
    with pytest.raises(ClaimError, match=words):
        parse_claim(text)


@pytest.mark.parametrize(
    ("text", "passed", "bound"),
    [
        ("accuracy drop <= 0.02", True, 0.02),
        ("accuracy drop <= 0.019", False, 0.02),  # the measured drop is 0.01: the bad end decides
        ("accuracy drop >= 0.001", False, 0.0),
        ("accuracy >= 0.79", True, 0.79),
        ("accuracy >= 0.8", False, 0.79),
        ("accuracy <= 0.93", False, 0.94),
        ("accuracy gain >= -0.02", True, -0.02),
        ("accuracy gain <= 0", True, 0.0),
        ("accuracy ratio >= 0.4", True, 0.4),
        ("accuracy ratio <= 0.5", False, 0.6),
        ("accuracy relative drop <= 0.6", True, 0.6),  # 1 - 0.4
        ("accuracy relative drop <= 59 %", False, 0.6),
        ("accuracy relative drop >= 0.3", True, 0.4),  # 1 - 0.6
        ("accuracy speedup >= 0.5", False, 0.4),
        ("accuracy speedup <= 0.6", True, 0.6),
    ],
)
def test_the_bad_end_of_the_interval_decides(text, passed, bound):
    verdict = judge(parse_claim(text), [row("accuracy")])

    assert (verdict.passed, verdict.bound) == (passed, pytest.approx(bound))


def test_a_speedup_of_something_that_should_be_low_is_one_over_the_ratio():
    latency = row("latency", unit="ms", direction="lower", ratio=(0.5, 0.4, 0.625))

    assert judge(parse_claim("latency speedup >= 1.6"), [latency]).bound == pytest.approx(1.6)
    assert judge(parse_claim("latency speedup <= 2.5"), [latency]).bound == pytest.approx(2.5)


def test_a_relative_drop_of_something_that_should_be_low_is_what_is_added():
    latency = row("latency", unit="ms", direction="lower", ratio=(1.02, 0.99, 1.04))

    assert judge(parse_claim("latency relative drop <= 4 %"), [latency]).bound == (
        pytest.approx(0.04)
    )
    assert judge(parse_claim("latency relative drop >= 0"), [latency]).bound == (
        pytest.approx(-0.01)
    )


@pytest.mark.parametrize("claim", ["spearman relative drop <= 0.9", "spearman relative drop >= -9"])
def test_a_relative_drop_of_a_baseline_that_may_be_zero_never_holds(claim):
    verdict = judge(parse_claim(claim), [row("spearman", was=(0.1, -0.05, 0.3))])

    assert not verdict.passed
    assert "begins at -0.05" in verdict.reason


def test_a_relative_drop_is_wider_than_the_drop_by_the_baseline():
    right = np.arange(1000) < 800  # 80 % right before
    before, after = (np.eye(2)[mask.astype(int)] for mask in (right, right & (np.arange(1000) > 3)))
    found = quality(METRICS["accuracy"], before, after, np.ones(1000, int))
    verdict = judge(parse_claim("accuracy relative drop <= 2 %"), [found])

    # b = 4 of n = 1,000, each at 97.5 %: the worst drop over the least baseline
    drop = paired_difference(4, 0, 1000, 0.975).high
    least = beta.ppf(0.0125, 800, 201)
    assert verdict.bound == pytest.approx(drop / least)
    assert 0.004 / 0.8 < verdict.bound < 0.02
    assert verdict.passed


def test_a_relative_drop_of_a_correlation_comes_from_paired_resamples():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    before = truth + 0.1 * rng.normal(size=200)
    after = before + 0.1 * rng.normal(size=200)
    found = quality(METRICS["pearson"], before, after, truth)
    verdict = judge(parse_claim("pearson relative drop <= 2 %"), [found])

    measured = 1 - np.corrcoef(after, truth)[0, 1] / np.corrcoef(before, truth)[0, 1]
    # unpaired, the ends would be as far apart as the intervals of both correlations
    assert measured < verdict.bound < measured + 0.004
    assert verdict.passed


def test_the_worst_setting_decides():
    rows = [
        row("latency", unit="ms", direction="lower", now=(1, 1, 2), setting="batch 1"),
        row("latency", unit="ms", direction="lower", now=(7, 6, 8), setting="batch 8"),
    ]
    verdict = judge(parse_claim("latency <= 5 ms"), rows)

    assert not verdict.passed
    assert "at batch 8 is at most 8" in verdict.reason


def test_a_claim_on_something_not_measured_is_refused():
    with pytest.raises(ClaimError, match="got no 'memory'"):
        judge(parse_claim("memory <= 1 GB"), [row("accuracy")])


@pytest.mark.parametrize(
    ("text", "least"),
    [
        # ln(0.025) / ln(1 - 0.01) = 367.04 for the one-sided end of an exact interval
        ("accuracy drop <= 0.01", 368),
        ("accuracy drop <= 0.1", 36),
        # ln(0.0125 - 1e-4) / ln(1 - 0.01): half of the error is spent on the baseline
        ("accuracy relative drop <= 1 %", 437),
        ("accuracy ratio >= 0.99", 437),
        ("accuracy >= 0.99", 368),
        ("spearman drop <= 0.001", 20),
    ],
)
def test_a_sample_that_could_never_decide_is_refused_with_the_size_it_takes(text, least):
    claim = parse_claim(text)

    check_decidable(claim, least)
    with pytest.raises(ClaimError, match=f"at least {least}"):
        check_decidable(claim, least - 2)


def test_perfection_is_decided_by_no_sample():
    with pytest.raises(ClaimError, match="must be below 1"):
        check_decidable(parse_claim("accuracy >= 1"), 10**9)


def test_one_example_decides_no_claim_on_quality():
    with pytest.raises(ClaimError, match="got 1"):
        check_decidable(parse_claim("accuracy drop <= 0.99"), 1)


def test_size_is_decided_without_examples():
    check_decidable(parse_claim("size ratio <= 0.5"), 1)


def test_judging_again_finds_a_verdict_that_was_edited():
    comparison = row("accuracy")
    honest = judge(parse_claim("accuracy drop <= 0.001"), [comparison])
    digests = ("sha256:" + c * 64 for c in "abcd")
    evidence = Evidence(
        *digests, {}, EngineConfig(), EngineConfig(), (comparison,), (replace(honest, passed=True),)
    )

    assert judge_again(evidence) == (honest,)
    assert not honest.passed
