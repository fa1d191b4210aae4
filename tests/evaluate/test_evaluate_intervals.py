import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial

from ingot.core.errors import ClaimError
from ingot.evaluate.intervals import needed_n, paired_difference, proportion, score_statistic


def test_no_success_in_a_hundred_has_the_textbook_upper_end() -> None:
    found = proportion(0, 100)

    assert found.low == 0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_zero_disagreements_have_a_width() -> None:
    found = paired_difference(0, 0, 5000)

    assert found.high == pytest.approx(1 - (0.025 - 1e-4) ** (1 / 5000), rel=0.01)
    assert found.low == -found.high


def test_coverage_is_at_least_the_level_at_eight_examples() -> None:
    n = 8
    ends = {(b, c): paired_difference(b, c, n) for b in range(n + 1) for c in range(n + 1 - b)}

    for p in np.linspace(0, 1, 11):
        for q in np.linspace(0, 1 - p, 11):
            rest = max(0.0, 1 - p - q)
            cover = sum(
                multinomial.pmf([b, c, n - b - c], n, [p, q, rest])
                for (b, c), i in ends.items()
                if i.low - 1e-12 <= p - q <= i.high + 1e-12
            )
            assert cover >= 0.95


def test_score_grows_with_losses_at_fixed_disagreements() -> None:
    b = np.arange(41.0)

    for d in (-0.3, -0.01, 0.0, 0.01, 0.3):
        assert (np.diff(score_statistic(b, 40 - b, 100, d)) > 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 15), st.integers(0, 15), st.integers(30, 200))
def test_swapping_the_models_mirrors_the_interval(b: int, c: int, n: int) -> None:
    one, other = paired_difference(b, c, n), paired_difference(c, b, n)

    assert (one.low, one.high) == (-other.high, -other.low)
    assert one.low <= one.value <= one.high


def test_needed_examples_decide_and_one_fewer_do_not() -> None:
    n = needed_n(0.01)

    assert paired_difference(0, 0, n).high <= 0.01 * 1.001
    assert paired_difference(0, 0, n - 5).high > 0.01


def test_margin_of_zero_is_refused() -> None:
    with pytest.raises(ClaimError, match="margin"):
        needed_n(0.0)
