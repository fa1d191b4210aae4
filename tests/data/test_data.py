import numpy as np
import pytest

from ingot.core.errors import DataError
from ingot.data.data import Data, Split, Task


def data(**splits):
    return Data(splits, Task.NONE, "sha256:00")


def test_batches_cover_every_row_once():
    split = Split({"x": np.arange(5)})

    assert [batch["x"].tolist() for batch in split.batches(2)] == [[0, 1], [2, 3], [4]]


def test_taking_a_pair_takes_both_rows_and_its_label():
    split = Split({"x": np.arange(6)}, np.array([7, 8, 9]), 2, ("a", "b", "c"))

    some = split.take([2, 0])

    assert some.inputs["x"].tolist() == [4, 5, 0, 1]
    assert some.targets.tolist() == [9, 7]
    assert some.labels == ("c", "a")


def test_an_unknown_split_is_suggested():
    with pytest.raises(DataError, match="Did you mean 'test'"):
        data(test=Split({"x": np.ones(1)})).split("tset")


def test_an_empty_split_is_refused_when_it_is_asked_for():
    with pytest.raises(DataError, match="at least one example"):
        data(calibration=Split({"x": np.ones(0)})).split("calibration")


def test_data_with_one_digest_are_equal():
    assert data(a=Split({})) == data()
    assert hash(data(a=Split({}))) == hash(data())
    assert data() != "sha256:00"
