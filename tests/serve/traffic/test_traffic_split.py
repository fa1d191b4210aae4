"""Who is dealt to which version."""

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2_contingency

from ingot.core.errors import ServeError
from ingot.serve.traffic.split import Split, check_served, shares

UNITS = [f"unit-{i}" for i in range(20_000)]
THREE = Split(((3, 0.6), (2, 0.3), (4, 0.1)), "salt")


def within_binomial_bounds(counts, split, n):
    """Say whether each count is inside the central 99.9 % of its binomial."""
    return all(
        binom.ppf(5e-4, n, w) <= counts.get(number, 0) <= binom.ppf(1 - 5e-4, n, w)
        for number, w in split.weights
    )


def count(arms):
    found = {}
    for arm in arms:
        found[arm] = found.get(arm, 0) + 1
    return found


def test_units_are_dealt_in_the_shares_asked_for():
    assert within_binomial_bounds(count(map(THREE.arm, UNITS)), THREE, len(UNITS))


def test_requests_without_a_unit_are_drawn_in_the_shares_asked_for():
    rng = random.Random(7)

    counts = count(THREE.draw(rng) for _ in range(20_000))

    assert within_binomial_bounds(counts, THREE, 20_000)


def test_the_arm_does_not_depend_on_the_order_of_the_units():
    arms = [THREE.arm(unit) for unit in UNITS]
    table = [[0] * 3 for _ in range(20)]
    for place, arm in enumerate(arms):
        table[place // 1000][(3, 2, 4).index(arm)] += 1

    assert chi2_contingency(table).pvalue > 0.01


def test_another_salt_deals_independently():
    other = Split(THREE.weights, "other")
    table = [[0] * 3 for _ in range(3)]
    for unit in UNITS:
        table[(3, 2, 4).index(THREE.arm(unit))][(3, 2, 4).index(other.arm(unit))] += 1

    assert chi2_contingency(table).pvalue > 0.01


def test_another_process_deals_alike():
    code = (
        "from ingot.serve.traffic.split import Split\n"
        "s = Split(((3, 0.6), (2, 0.3), (4, 0.1)), 'salt')\n"
        "print(*(s.arm(f'unit-{i}') for i in range(200)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert [int(word) for word in done.stdout.split()] == [THREE.arm(u) for u in UNITS[:200]]


@st.composite
def splits(draw):
    parts = draw(st.lists(st.integers(0, 50), min_size=2, max_size=5).filter(lambda p: sum(p) > 0))
    return Split(tuple((i + 1, part / sum(parts)) for i, part in enumerate(parts)))


@settings(max_examples=60, deadline=None)
@given(split=splits(), number=st.integers(1, 6), up=st.floats(0, 1))
def test_raising_one_weight_moves_units_only_into_it(split, number, up):
    before = split.weight(number)
    raised = split.raised(number, before + (1 - before) * up)
    moved = {(split.arm(u), raised.arm(u)) for u in UNITS[:300] if split.arm(u) != raised.arm(u)}

    assert {to for _, to in moved} <= {number}


def test_the_others_keep_their_proportions_when_one_is_raised():
    assert THREE.raised(4, 0.4).weights == (
        (3, pytest.approx(0.4)),
        (2, pytest.approx(0.2)),
        (4, 0.4),
    )
    assert THREE.raised(4, 0.0).numbers == (3, 2)
    assert Split(((3, 1.0),)).raised(3, 0.5).weights == ((3, 1.0),)


def test_a_version_without_a_share_gets_nothing():
    split = Split(((3, 1.0), (2, 0.0)))
    rng = random.Random(0)

    assert {split.arm(unit) for unit in UNITS[:500]} == {3}
    assert {split.draw(rng) for _ in range(500)} == {3}


@pytest.mark.parametrize(
    "weights",
    [(), ((3, 0.5),), ((3, 0.5), (2, 0.6)), ((3, 1.5), (2, -0.5)), ((3, 0.5), (3, 0.5)),
     ((3, float("nan")), (2, 0.5))],
)  # fmt: skip
def test_weights_that_are_no_whole_are_refused(weights):
    with pytest.raises(ServeError, match="sum to 1"):
        Split(weights)


def test_shares_in_per_cent_must_make_a_hundred():
    assert shares({3: 90, 2: 10}).weights == ((3, 0.9), (2, 0.1))
    with pytest.raises(ServeError, match="sum to 100"):
        shares({3: 90, 2: 20})


def test_a_version_that_is_not_served_is_refused_with_those_that_are():
    with pytest.raises(ServeError, match="Valid: 2, 3"):
        check_served({4}, {2, 3}, "digits")
