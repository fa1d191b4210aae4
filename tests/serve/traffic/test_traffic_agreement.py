"""When two answers agree."""

import math

import numpy as np
import pytest

from ingot.serve.traffic.agreement import Sums, match

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("given", "other", "agrees", "difference"),
    [
        ([[0.1, 0.9], [0.6, 0.4]], [[0.3, 0.7], [0.9, 0.1]], True, 0.3),
        ([[0.1, 0.9], [0.6, 0.4]], [[0.1, 0.9], [0.4, 0.6]], False, 0.2),
        ([[10.0], [1.0]], [[10.09], [1.0]], True, 0.09),
        ([[10.0], [1.0]], [[10.0], [1.2]], False, 0.2),
        (2.0, 2.0, True, 0.0),
        ([0.0], [0.1], False, 0.1),
        ([NAN], [NAN], True, 0.0), ([INF], [INF], True, 0.0), ([1.0], [NAN], False, INF),
        ([[1.0, 2.0]], [[1.0, 2.0, 3.0]], False, INF),
    ],
)  # fmt: skip
def test_floats_agree_by_their_largest_score_or_within_a_tolerance(
    given, other, agrees, difference
):
    found = match(np.array(given, np.float64), np.array(other, np.float64), 0.01)

    assert found == (agrees, pytest.approx(difference))


def test_everything_else_must_be_equal():
    assert match(np.array([1, 2]), np.array([1, 2]), 0.5) == (True, 0.0)
    assert match(np.array([1, 2]), np.array([1, 5]), 0.5) == (False, 3.0)
    assert match(np.array([True]), np.array([False]), 0.5) == (False, 1.0)
    assert match(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32), 0.0) == (True, 0.0)


def test_an_answer_agrees_if_every_output_does():
    sums = Sums()
    sums.add(
        {"a": np.array([1]), "b": np.array([1.0])}, {"a": np.array([1]), "b": np.array([2.0])}, 0
    )
    sums.add({"a": np.array([1])}, {"a": np.array([1]), "b": np.array([9.0])}, 0)

    assert (sums.compared, sums.agreed) == (2, 1)
    found = sums.to_json()["outputs"]
    assert found["a"] == {"compared": 2, "agreed": 2, "largest_difference": 0.0}
    assert found["b"] == {"compared": 1, "agreed": 0, "largest_difference": 1.0}


def test_a_difference_without_bound_is_null_in_json():
    sums = Sums()
    sums.add({"a": np.array([1.0])}, {"a": np.array([NAN])}, 0.1)

    assert sums.to_json()["outputs"]["a"]["largest_difference"] is None
