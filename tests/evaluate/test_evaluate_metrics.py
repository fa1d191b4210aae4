import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from ingot.core.errors import DataError
from ingot.evaluate.metrics import METRICS, check_width, cosine_rows

LOGITS = np.array([[3.0, 1, 2], [0, 5, 1], [1, 2, 3], [9, 1, 0]])
LABELS = np.array([0, 1, 1, 2])


def value(name, predictions, reference, weights=None):
    """Return the metric with every example drawn once, or as often as `weights` says."""
    drawn = np.ones((1, len(predictions))) if weights is None else np.asarray([weights], float)
    return float(METRICS[name].build(predictions, reference)(drawn)[0])


def test_accuracy_counts_the_largest_logit():
    assert value("accuracy", LOGITS, LABELS) == 0.5


def test_accuracy_of_a_resample_counts_examples_as_often_as_they_were_drawn():
    assert value("accuracy", LOGITS, LABELS, [3, 0, 1, 0]) == 0.75


def test_top5_counts_labels_among_the_five_largest():
    logits = np.arange(7.0)[None].repeat(2, 0)

    assert value("top5_accuracy", logits, np.array([2, 1])) == 0.5


def test_agreement_needs_no_labels():
    other = LOGITS.copy()
    other[0] = [0, 9, 0]

    assert value("agreement", other, LOGITS) == 0.75


def test_f1_is_the_macro_average_of_sklearn():
    expected = f1_score(LABELS, LOGITS.argmax(1), average="macro")

    assert value("f1", LOGITS, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "truth"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)]
)
def test_correlations_are_those_of_scipy(name, truth):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.integers(0, 5, 50).astype(float)  # y has ties

    assert value(name, x, y) == pytest.approx(truth(x, y).statistic)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=8).filter(lambda w: sum(map(bool, w)) > 3))
def test_spearman_of_a_resample_is_that_of_the_repeated_rows(weights):
    x = np.array([0.3, 0.1, 0.9, 0.4, 0.4, 0.8, 0.2, 0.7])
    y = np.array([1.0, 0, 2, 2, 1, 3, 0, 3])
    rows = np.repeat(np.arange(8), weights)
    found = value("spearman", x, y, weights)

    if np.ptp(x[rows]) == 0 or np.ptp(y[rows]) == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(x[rows], y[rows]).statistic)


def test_a_correlation_of_constants_is_not_a_number():
    assert np.isnan(value("pearson", np.ones(4), np.arange(4.0)))


def test_errors_are_means_over_examples_and_values():
    x, y = np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 0], [3, 5]])

    assert value("mse", x, y) == (4 + 0 + 0 + 1) / 4
    assert value("mae", x, y) == (2 + 1) / 4


def test_errors_refuse_targets_of_another_width():
    with pytest.raises(DataError, match="as many values per example"):
        METRICS["mse"].build(np.ones((3, 2)), np.ones((3, 1)))


def test_a_correlation_refuses_more_than_one_value_per_example():
    with pytest.raises(DataError, match="one value per example"):
        METRICS["spearman"].build(np.ones((3, 2)), np.ones(3))


def test_cosine_of_rows():
    found = cosine_rows(np.array([[3.0, 4], [0, 0], [0, 0]]), np.array([[4.0, 3], [0, 0], [1, 0]]))

    np.testing.assert_allclose(found, [24 / 25, 1.0, 0.0])


def test_r2_is_the_share_of_the_baselines_variance_that_is_kept():
    baseline, answers = np.array([[0.0], [2.0], [4.0]]), np.array([[0.0], [3.0], [4.0]])

    found = METRICS["r2"].build(answers, baseline)(np.array([[1.0, 1, 1], [2, 1, 0]]))

    np.testing.assert_allclose(found, [1 - 1 / 8, 1 - 1 / (2 * 4)])


def test_r2_of_the_mean_is_zero_and_of_the_opposite_is_below():
    y = np.array([[1.0, 5.0], [3.0, 1.0]])
    ones = np.ones((1, 2))

    assert METRICS["r2"].build(np.tile(y.mean(axis=0), (2, 1)), y)(ones) == pytest.approx(0)
    assert METRICS["r2"].build(-y, y)(ones) < 0


def test_r2_refuses_a_baseline_that_answers_one_constant():
    with pytest.raises(DataError, match="one constant"):
        METRICS["r2"].build(np.ones((3, 2)), np.ones((3, 2)))


@pytest.mark.parametrize("name", ["cosine", "agreement", "accuracy"])
def test_directions_and_classes_of_a_single_value_are_refused(name):
    with pytest.raises(DataError, match=f"'{name}' must compare answers of two or more values"):
        check_width([name], np.ones((4, 1)))


def test_errors_of_a_single_value_are_fine():
    assert check_width(["r2", "mse"], np.ones((4, 1))) is None
    assert check_width(["cosine"], np.ones((4, 2))) is None


@pytest.mark.parametrize("name", ["accuracy", "agreement", "f1", "top5_accuracy"])
def test_classes_of_every_token_are_no_class_of_an_example(name):
    with pytest.raises(DataError, match="one row of scores per example; got shape"):
        check_width([name], np.ones((4, 7, 2)))
