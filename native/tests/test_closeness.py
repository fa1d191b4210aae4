"""What counts as the reference's answer: codes at a tie may fall to either side, no others."""

from dataclasses import replace

import numpy as np
import pytest

from closeness import REACH, check_answer, is_close, neighbours
from ingot_native import reference
from tiny_models import BERT, random_sequences, random_tensors

SPEC = replace(
    BERT, layers=1, hidden=4, heads=1, kv_heads=1, head_dim=4, inner=4, pool="tokens",
    normalize=False,
)  # fmt: skip
TIES = np.array([[127.0, -2.5, 8.0, 2.5], [127.0, 3.25, 8.0, 0.0]])


def test_a_tie_falls_to_either_side_and_equal_magnitudes_together() -> None:
    found = list(neighbours(lambda: reference.rounded(TIES)))

    assert [answer.tolist() for answer in found] == [
        [[127, -2, 8, 2], [127, 3, 8, 0]],
        [[127, -3, 8, 3], [127, 3, 8, 0]],
    ]


def test_a_number_between_two_of_bf16_falls_to_either_side() -> None:
    found = list(neighbours(lambda: reference.to_bf16(np.array([[1.0, -1 - 2.0**-8]]))))

    assert [answer.tolist() for answer in found] == [[[1, -1]], [[1, -1 - 2.0**-7]]]


@pytest.mark.parametrize(("share", "answers"), [(0.5, 2), (2.0, 1)])
def test_ties_reach_as_far_as_float_rounding(share: float, answers: int) -> None:
    x = np.array([[127.0, 2.5 + share * REACH * 127]])

    assert len(list(neighbours(lambda: reference.rounded(x)))) == answers


def test_a_row_of_zeros_has_no_ties() -> None:
    assert len(list(neighbours(lambda: reference.rounded(np.zeros((2, 3)))))) == 1


def test_nearer_and_fewer_ties_come_first() -> None:
    x = np.array([[127.0, 2.5 + 9e-6, 8.5]])  # 71 nanoths of the largest away, and none

    codes = [answer[0, 1:].tolist() for answer in neighbours(lambda: reference.rounded(x))]

    assert codes == [[3, 8], [3, 9], [2, 8], [2, 9]]


def test_an_answer_with_a_code_that_is_at_no_tie_is_refused() -> None:
    tensors = random_tensors(SPEC, 2)
    sequences = random_sequences(SPEC, [3])
    want = reference.forward(SPEC, tensors, sequences)
    wrong = want.copy()
    wrong[1, 2] += 0.03 * np.abs(want).max()

    assert check_answer(want, SPEC, tensors, sequences) == 0
    assert not is_close(wrong, want)
    with pytest.raises(AssertionError, match="no codes at ties"):
        check_answer(wrong, SPEC, tensors, sequences)
