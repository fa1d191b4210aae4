import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core.errors import DataError
from ingot.data.data import Split
from ingot.data.splits import make_data, split_data


def part(values, targets=None, **more):
    array = np.asarray(values, np.float32)
    return Split({"x": array}, None if targets is None else np.asarray(targets), **more)


def test_duplicates_across_splits_are_refused_with_count_and_examples():
    splits = {
        "calibration": part([[1.0], [2.0]], [0, 1], labels=("one", "two")),
        "test": part([[2.0], [1.0], [3.0]], [0, 1, 1]),
    }

    with pytest.raises(DataError, match=r"2 duplicate.*test\[0\] = calibration\[1\] 'two'"):
        make_data(splits, task="classification")
    assert len(make_data(splits, task="classification", allow_duplicates=True).splits) == 2


def test_duplicates_within_one_split_are_accepted():
    data = make_data({"test": part([[1.0], [1.0]], [0, 1])}, task="classification")

    assert len(data.split("test")) == 2


def test_digest_ignores_integer_width_of_labels_but_not_their_values():
    def digest(labels):
        return make_data({"test": part([[1.0], [2.0]], labels)}, task="classification").digest

    narrow, wide = digest(np.array([0, 1], np.uint8)), digest(np.array([0, 1], np.int64))

    assert narrow == wide
    assert narrow != digest(np.array([1, 0]))


def test_digest_changes_with_the_order_of_examples():
    one = make_data({"test": part([[1.0], [2.0]])}, task="none")
    two = make_data({"test": part([[2.0], [1.0]])}, task="none")

    assert one.digest != two.digest


def tokens(width, ids=(4, 5)):
    row = np.zeros((1, width), np.int64)
    row[0, : len(ids)] = ids
    return Split({"input_ids": row, "attention_mask": (row != 0).astype(np.int64)})


def test_digest_does_not_depend_on_the_padding_of_masked_text():
    short, padded = (make_data({"test": tokens(n)}, task="none").digest for n in (3, 9))

    assert short == padded


def test_a_duplicate_hidden_by_padding_is_still_found():
    with pytest.raises(DataError, match="1 duplicate"):
        make_data({"calibration": tokens(3), "test": tokens(5)}, task="none")


BAD = {
    "labels out of range": ({"test": part([[1.0]], [4])}, "classification", "between 0 and 1"),
    "negative label": ({"test": part([[1.0]], [-1])}, "classification", "between 0 and 1"),
    "float labels": ({"test": part([[1.0]], [0.5])}, "classification", "one integer"),
    "no targets": ({"test": part([[1.0]])}, "regression", "must have targets"),
    "NaN input": ({"test": part([[np.nan]], [0])}, "classification", "row 0"),
    "Inf target": ({"test": part([[1.0]], [np.inf])}, "regression", "finite"),
    "text input": ({"test": Split({"x": np.array(["a"])})}, "none", "must be numbers"),
    "no splits": ({}, "none", "at least one split"),
    "no inputs": ({"test": Split({})}, "none", "must have an input"),
    "unequal rows": ({"test": Split({"a": np.ones(2), "b": np.ones(3)})}, "none", "equally many"),
    "unequal targets": ({"test": part([[1.0]], [0, 1])}, "classification", "one target per"),
    "targets of none": ({"test": part([[1.0]], [0])}, "none", "no targets"),
    "empty calibration": ({"calibration": part(np.ones((0, 1)))}, "none", "at least one example"),
    "single rows": ({"test": part([[1.0]], [1.0])}, "similarity", "2 rows per example"),
    "half a pair": ({"test": part([[1.0]], [1.0], rows_per_example=2)}, "similarity", "multiple"),
    "labels missing": ({"test": part([[1.0]], labels=("a", "b"))}, "none", "one label per"),
    "task": ({"test": part([[1.0]])}, "clasification", "Did you mean 'classification'"),
    "text targets": ({"test": part([[1.0]], ["a"])}, "regression", "must be numbers"),
    "inputs differ": (
        {"test": part([[1.0]]), "calibration": Split({"z": np.ones((1, 1), np.float32)})},
        "none",
        "same inputs",
    ),
    "shapes differ": (
        {"test": part([[1.0]]), "calibration": part([[1.0, 2.0]])},
        "none",
        "one dtype and shape",
    ),
    "dtypes differ": (
        {"test": part([[1.0]]), "calibration": Split({"x": np.ones((1, 1))})},
        "none",
        "float64",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_data_are_refused_by_name(case):
    splits, task, message = BAD[case]

    with pytest.raises(DataError, match=message):
        make_data(splits, task=task, classes=("no", "yes") if task == "classification" else ())


def test_calibration_may_come_without_targets():
    splits = {"calibration": part([[1.0]]), "test": part([[2.0]], [0])}

    assert make_data(splits, task="classification").split("calibration").targets is None


@given(st.lists(st.integers(0, 8), min_size=12, max_size=60), st.integers(0, 99))
def test_parts_are_disjoint_and_complete_whatever_the_duplicates(values, seed):
    values = [*values, *range(20, 30)]
    whole = part([[v] for v in values])

    parts = split_data(whole, {"a": 0.5, "b": 0.5}, seed=seed)

    sets = [set(p.inputs["x"][:, 0].tolist()) for p in parts.values()]
    assert not sets[0] & sets[1]
    assert sum(len(p) for p in parts.values()) == len(values)


def test_parts_keep_the_proportions_of_the_labels():
    whole = part(np.arange(100)[:, None], [0] * 80 + [1] * 20)

    parts = split_data(whole, {"calibration": 0.25, "test": 0.5}, seed=3)

    counts = {k: np.bincount(p.targets).tolist() for k, p in parts.items()}
    assert abs(counts["calibration"][0] - 20) <= 1
    assert abs(counts["calibration"][1] - 5) <= 1
    assert abs(counts["test"][0] - 40) <= 1
    assert abs(counts["test"][1] - 10) <= 1


def test_the_seed_decides_the_division():
    whole = part(np.arange(40)[:, None])

    def test_rows(seed):
        found = split_data(whole, {"a": 0.5, "test": 0.5}, seed=seed)["test"].inputs["x"]
        return found[:, 0].tolist()

    assert test_rows(1) == test_rows(1)
    assert test_rows(1) != test_rows(2)


@pytest.mark.parametrize("fractions", [{}, {"a": 0.0}, {"a": 0.7, "b": 0.7}])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(DataError, match="Fractions"):
        split_data(part([[1.0]]), fractions, seed=0)


def test_one_example_cannot_be_divided():
    with pytest.raises(DataError, match=r"1 example\(s\) divided"):
        split_data(part([[1.0]]), {"calibration": 0.2, "test": 0.8}, seed=0)


def test_pairs_stay_whole():
    whole = part(np.arange(20)[:, None], np.linspace(0, 1, 10), rows_per_example=2)

    test = split_data(whole, {"calibration": 0.5, "test": 0.5}, seed=0)["test"]

    rows = test.inputs["x"][:, 0]
    assert (rows[1::2] - rows[::2] == 1).all()


def test_masked_rows_without_columns_are_accepted():
    empty = np.zeros((2, 0), np.int64)
    split = Split({"input_ids": empty, "attention_mask": empty})

    assert len(make_data({"test": split}, task="none").split("test")) == 2
