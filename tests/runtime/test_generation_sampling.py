import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.core.errors import DataError, EngineError
from ingot.runtime.generation.sampling import (
    Sampler,
    Sampling,
    log_softmax,
    penalized,
    pick,
    probabilities,
)

LOGS = np.log([0.4, 0.3, 0.2, 0.1])


def chances(**settings_):
    return probabilities(LOGS, Sampling(**{"temperature": 1.0, **settings_}))


def test_without_filters_the_softmax_is_drawn_from():
    np.testing.assert_allclose(chances(), [0.4, 0.3, 0.2, 0.1])


def test_temperature_one_half_squares_the_probabilities():
    squares = np.array([0.16, 0.09, 0.04, 0.01])

    np.testing.assert_allclose(chances(temperature=0.5), squares / 0.3)


def test_top_k_keeps_the_likeliest_and_makes_them_whole():
    np.testing.assert_allclose(chances(top_k=2), [4 / 7, 3 / 7, 0, 0])


def test_top_k_gives_a_tie_at_its_edge_to_the_lower_id():
    found = probabilities(np.zeros(4), Sampling(temperature=1.0, top_k=2))

    np.testing.assert_allclose(found, [0.5, 0.5, 0, 0])


def test_top_p_keeps_the_fewest_that_reach_it():
    np.testing.assert_allclose(chances(top_p=0.65), [4 / 7, 3 / 7, 0, 0])
    np.testing.assert_allclose(chances(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0])


def test_top_p_of_zero_keeps_the_likeliest():
    np.testing.assert_allclose(chances(top_p=0.0), [1, 0, 0, 0])


def test_min_p_keeps_a_share_of_the_likeliest():
    np.testing.assert_allclose(chances(min_p=0.6), [4 / 7, 3 / 7, 0, 0])


def test_filters_follow_one_another():
    # Of the three that top_k leaves, 4/9 and 3/9 reach 0.7 together: 7/9.
    np.testing.assert_allclose(chances(top_k=3, top_p=0.7), [4 / 7, 3 / 7, 0, 0])


def test_the_penalty_divides_positive_scores_and_multiplies_negative_ones():
    found = penalized(np.array([2.0, -2.0, 1.0, -1.0]), {0, 1}, 2.0)

    np.testing.assert_array_equal(found, [1.0, -4.0, 1.0, -1.0])


def test_a_token_of_minus_infinity_is_never_drawn():
    scores = np.array([-np.inf, 0.0, -np.inf])
    sampler = Sampler(Sampling(temperature=1.0), [])

    assert {sampler.draw(scores).token for _ in range(50)} == {1}


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.29, 1), (0.31, 3), (1.0, 3)])
def test_pick_passes_over_impossible_tokens(uniform, token):
    assert pick(np.array([0.0, 0.3, 0.0, 0.7, 0.0]), uniform) == token


def test_frequencies_follow_the_distribution():
    sampler = Sampler(Sampling(temperature=1.0, top_k=3), [])

    counts = np.bincount([sampler.draw(LOGS).token for _ in range(9000)], minlength=4)

    wanted = 9000 * np.array([4, 3, 2, 0]) / 9
    # Six standard deviations of a binomial count.
    assert np.all(np.abs(counts - wanted) <= 6 * np.sqrt(9000 * 0.25))
    assert counts[3] == 0


def test_a_seed_gives_the_same_draws_and_another_seed_others():
    def drawn(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [])
        return [sampler.draw(LOGS).token for _ in range(40)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_temperature_zero_takes_the_likeliest_and_a_tie_goes_to_the_lower_id():
    assert Sampler(Sampling(), []).draw(np.array([1.0, 5.0, 5.0])).token == 1


def test_the_penalty_counts_the_prompt_and_what_was_drawn():
    sampler = Sampler(Sampling(repetition_penalty=10.0), [0])
    scores = np.array([5.0, 4.0, 3.0])

    assert [sampler.draw(scores).token for _ in range(2)] == [1, 2]


def test_log_probabilities_are_the_models_own():
    drawn = Sampler(Sampling(temperature=0.5, top_k=1, logprobs=2), []).draw(LOGS)

    assert drawn.token == 0
    assert drawn.logprob == pytest.approx(math.log(0.4))
    assert [token for token, _ in drawn.top] == [0, 1]
    assert drawn.top[1][1] == pytest.approx(math.log(0.3))


def test_log_softmax_of_large_scores_does_not_overflow():
    np.testing.assert_allclose(np.exp(log_softmax(np.array([1e4, 1e4]))), [0.5, 0.5])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(EngineError, match="must be numbers"):
        Sampler(Sampling(), []).draw(np.array([0.0, bad, 1.0]))


def test_scores_without_any_finite_one_are_refused():
    with pytest.raises(EngineError, match="must be numbers"):
        Sampler(Sampling(), []).draw(np.full(3, -np.inf))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("logprobs", -1),
    ],
)
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(DataError, match=f"{name} must be"):
        Sampling(**{name: value})


def test_an_empty_stop_string_is_refused():
    with pytest.raises(DataError, match="at least one character"):
        Sampling(stop=("",))


def plain_top_p(chance, top_p):
    """The definition, token by token."""
    kept, total = np.zeros_like(chance), 0.0
    for token in sorted(range(len(chance)), key=lambda i: (-chance[i], i)):
        kept[token] = chance[token]
        total += chance[token]
        if total >= top_p:
            break
    return kept / kept.sum()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.98), st.floats(0.1, 3.0))
def test_top_p_is_what_its_definition_says(seed, top_p, temperature):
    scores = np.random.default_rng(seed).normal(0, 2, 40)
    base = probabilities(scores, Sampling(temperature=temperature))

    found = probabilities(scores, Sampling(temperature=temperature, top_p=top_p))

    np.testing.assert_allclose(found, plain_top_p(base, top_p), atol=1e-12)
