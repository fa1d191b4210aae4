import numpy as np
import pytest

from ingot.core.errors import DataError
from ingot.models.feeds import feeds_for, fixed_rows
from ingot.models.model import Signature, TensorSpec

IMAGE = Signature((TensorSpec("image", "float32", ("batch", 1, 8, 8)),), ())
TOKENS = Signature(
    tuple(TensorSpec(n, "int64", ("batch", "sequence")) for n in ("input_ids", "attention_mask")),
    (),
)


def test_the_star_is_the_only_input():
    feeds = feeds_for(IMAGE, {"*": np.zeros((2, 1, 8, 8))})

    assert feeds["image"].dtype == np.float32


def test_the_star_is_refused_where_there_are_two_inputs():
    with pytest.raises(DataError, match="Name them: input_ids, attention_mask"):
        feeds_for(TOKENS, {"*": np.zeros((2, 3), np.int64)})


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(DataError, match="Did you mean 'image'"):
        feeds_for(IMAGE, {"imag": np.zeros((2, 1, 8, 8))})


def test_a_missing_input_is_named():
    with pytest.raises(DataError, match="'attention_mask' is missing"):
        feeds_for(TOKENS, {"input_ids": np.zeros((2, 3), np.int64)})


def test_the_mask_of_texts_is_left_out_of_a_model_that_takes_none():
    ids = np.array([[3, 9, 0]])
    bare = Signature(TOKENS.inputs[:1], ())

    feeds = feeds_for(bare, {"input_ids": ids, "attention_mask": np.array([[1, 1, 0]])})

    assert list(feeds) == ["input_ids"]
    with pytest.raises(DataError, match="'attention_mask'"):
        feeds_for(IMAGE, {"image": np.zeros((1, 1, 8, 8)), "attention_mask": ids})


def test_narrow_integers_are_widened():
    ids = np.ones((2, 3), np.int32)

    assert (
        feeds_for(TOKENS, dict.fromkeys(("input_ids", "attention_mask"), ids))["input_ids"].dtype
        == np.int64
    )


def test_floats_are_not_cut_to_integers():
    ids = np.ones((2, 3), np.float32)

    with pytest.raises(DataError, match="must be int64; got float32"):
        feeds_for(TOKENS, dict.fromkeys(("input_ids", "attention_mask"), ids))


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 8, 8), "must have 4 axes"), ((2, 1, 8, 9), "axis 3 is 9, not 8")]
)
def test_a_wrong_shape_is_refused(shape, message):
    with pytest.raises(DataError, match=message):
        feeds_for(IMAGE, {"image": np.zeros(shape, np.float32)})


def test_rows_must_agree():
    ids, mask = np.ones((2, 3), np.int64), np.ones((3, 3), np.int64)

    with pytest.raises(DataError, match="agree in rows; 'input_ids' has 2"):
        feeds_for(TOKENS, {"input_ids": ids, "attention_mask": mask})


def test_a_model_of_fixed_rows_takes_any_multiple_of_them():
    pairs = Signature((TensorSpec("image", "float32", (2, 1, 8, 8)),), ())

    assert len(feeds_for(pairs, {"image": np.zeros((6, 1, 8, 8), np.float32)})["image"]) == 6
    with pytest.raises(DataError, match=r"must have shape \(2, 1, 8, 8\)"):
        feeds_for(pairs, {"image": np.zeros((5, 1, 8, 8), np.float32)})


def test_only_a_size_that_all_inputs_share_is_the_number_of_rows():
    state = (TensorSpec("x", "float32", ("batch", 4)), TensorSpec("state", "float32", (2, 4)))
    rate = (TensorSpec("x", "float32", (1, 4)), TensorSpec("rate", "int64", ()))

    assert fixed_rows(Signature(state, ())) is None
    assert fixed_rows(Signature(rate, ())) is None
    assert fixed_rows(Signature((rate[0], rate[0]), ())) == 1
