import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingot.compress.quantize.observers import (
    OBSERVERS,
    ChannelMinMax,
    Entropy,
    Histogram,
    MeanSquare,
    MinMax,
    MovingAverage,
    Percentile,
    make_observer,
)
from ingot.compress.quantize.qparams import affine, symmetric
from ingot.core.errors import RecipeError

# The two inputs printed in the PyTorch blog post "Practical Quantization in PyTorch".
FIRST = np.array(
    [
        [-0.0590, 1.1674, 0.7119, -1.1270],
        [-1.3974, 0.5077, -0.5601, 0.0683],
        [-0.0929, 0.9473, 0.7159, -0.4574],
    ]
)
SECOND = np.array(
    [
        [-0.0236, -0.7599, 1.0290, 0.8914],
        [-1.1727, -1.2556, -0.2271, 0.9568],
        [-0.2500, 1.4579, 1.4707, 0.4043],
    ]
)


def watch(observer, *batches):
    for batch in batches:
        observer.update(np.asarray(batch, np.float32))
    return observer


def test_min_max_gives_the_printed_grid():
    grid = affine(*watch(MinMax(), FIRST, SECOND).range())

    assert (round(float(grid.scale), 4), int(grid.zero_point)) == (0.0112, 124)


def test_moving_average_gives_the_printed_grid():
    grid = affine(*watch(MovingAverage(), FIRST, SECOND).range())

    assert (round(float(grid.scale), 4), int(grid.zero_point)) == (0.0101, 139)


def test_symmetric_moving_average_gives_the_printed_grid():
    low, high = watch(MovingAverage(), FIRST, SECOND).range()
    grid = symmetric(low, high, dtype="uint8", narrow=False)

    assert (round(float(grid.scale), 4), int(grid.zero_point)) == (0.0109, 128)


def test_per_channel_moving_average_gives_the_printed_grids():
    ranges = [watch(MovingAverage(), a, b).range() for a, b in zip(FIRST, SECOND, strict=True)]
    low, high = np.array(ranges).T
    grid = affine(low, high, axis=0)

    np.testing.assert_array_equal(grid.scale.round(4), np.float32([0.0090, 0.0075, 0.0055]))
    np.testing.assert_array_equal(grid.zero_point, [125, 187, 82])


def test_channel_min_max_gives_each_row_its_own_range():
    low, high = watch(ChannelMinMax(axis=0), FIRST, SECOND).channels()

    np.testing.assert_allclose(low, [-1.1270, -1.3974, -0.4574], rtol=1e-6)
    np.testing.assert_allclose(high, [1.1674, 0.9568, 1.4707], rtol=1e-6)


def test_channel_min_max_gives_an_activation_the_range_of_all_channels():
    assert watch(ChannelMinMax(), FIRST, SECOND).range() == watch(MinMax(), FIRST, SECOND).range()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(0, 1000), st.sampled_from([0, 1, -1]))
def test_channel_ranges_merge_in_any_grouping(rows, seed, axis):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(rows, 4, 3)) for _ in range(3)]
    whole = watch(ChannelMinMax(axis), *batches).channels()
    a, b, c = (watch(ChannelMinMax(axis), batch) for batch in batches)
    d, e, f = (watch(ChannelMinMax(axis), batch) for batch in batches)
    a.merge(b)
    a.merge(c)  # (a + b) + c
    e.merge(f)
    d.merge(e)  # a + (b + c)

    np.testing.assert_array_equal(a.channels(), whole)
    np.testing.assert_array_equal(d.channels(), whole)


def test_channel_min_max_refuses_another_number_of_channels():
    with pytest.raises(RecipeError, match="same channels; got 3 on axis -1 after 4"):
        watch(ChannelMinMax(), np.ones((2, 4)), np.ones((2, 3)))


def test_moving_average_continues_exactly_when_merged():
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(7, 20))
    whole = watch(MovingAverage(0.1), *batches)
    left, right = watch(MovingAverage(0.1), *batches[:3]), watch(MovingAverage(0.1), *batches[3:])
    left.merge(right)

    np.testing.assert_allclose(left.range(), whole.range(), rtol=1e-12)


@pytest.mark.parametrize("name", sorted(set(OBSERVERS) - {"moving-average"}))
def test_observers_do_not_depend_on_how_calibration_is_sharded(name):
    rng = np.random.default_rng(1)
    batches = [rng.normal(0, scale, 200) for scale in (0.1, 3.0, 0.5, 1.0)]
    whole = watch(make_observer(name), *batches)
    right, left = watch(make_observer(name), *batches[2:]), watch(make_observer(name), *batches[:2])
    right.merge(left)

    assert right.range() == whole.range()


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_merging_with_an_observer_that_saw_nothing_changes_nothing(name):
    seen = watch(make_observer(name), FIRST)
    before = seen.range()
    seen.merge(make_observer(name))
    empty = make_observer(name)
    empty.merge(seen)

    assert seen.range() == before == empty.range()


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_observers_ignore_empty_batches_and_handle_constants(name):
    observer = watch(make_observer(name), np.zeros((0, 3)), np.full(5, 0.25))

    assert observer.range() == (0.25, 0.25)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_observers_refuse_values_that_are_not_finite(name, bad):
    with pytest.raises(RecipeError, match="must be finite"):
        make_observer(name).update(np.array([1.0, bad]))


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_observers_that_saw_nothing_have_no_range(name):
    with pytest.raises(RecipeError, match="at least one value"):
        make_observer(name).range()


def test_an_unknown_observer_gets_the_nearest_name():
    with pytest.raises(RecipeError, match="Did you mean 'histogram'"):
        make_observer("histgram")


def test_percentile_clips_the_asked_share_of_uniform_values():
    observer = Percentile(0.1)
    observer.update(np.linspace(0, 1, 100_001, dtype=np.float32))

    np.testing.assert_allclose(observer.range(), (0.1, 0.9), atol=1e-3)


def test_mean_square_takes_the_factor_with_the_least_error_on_its_grid():
    values = np.concatenate([np.random.default_rng(2).normal(0, 1, 5000), [40.0]]).astype(
        np.float32
    )
    _, high = watch(MeanSquare(), values).range()
    errors = {}
    for factor in MeanSquare.FACTORS:
        grid = affine(factor * values.min(), factor * values.max())
        errors[factor] = np.square(values - grid.dequantize(grid.quantize(values))).sum()

    best = min(errors, key=errors.get)
    assert high / values.max() == pytest.approx(best, abs=0.021)


def sqnr(values, bounds):
    grid = affine(*bounds)
    noise = values - grid.dequantize(grid.quantize(values))
    return 20 * np.log10(np.linalg.norm(values) / np.linalg.norm(noise))


@pytest.mark.parametrize("kind", [Histogram, MeanSquare])
def test_distribution_aware_rules_beat_min_max_on_an_outlier(kind):
    values = np.random.default_rng(3).normal(0, 1, 1_000_000).astype(np.float32)
    values[0] = 25.0
    gain = sqnr(values, watch(kind(), values).range()) - sqnr(
        values, watch(MinMax(), values).range()
    )

    assert gain >= 3


@pytest.mark.parametrize("kind", [Histogram, MeanSquare, Percentile])
def test_distribution_aware_rules_match_min_max_on_uniform_values(kind):
    values = np.random.default_rng(4).uniform(-1, 1, 100_000).astype(np.float32)
    gap = sqnr(values, watch(kind(), values).range()) - sqnr(
        values, watch(MinMax(), values).range()
    )

    assert abs(gap) <= 0.5


def test_entropy_clips_an_outlier_and_keeps_the_bulk():
    values = np.random.default_rng(5).normal(0, 1, 100_000).astype(np.float32)
    low, high = watch(Entropy(), np.append(values, np.float32(50))).range()

    assert 2.5 < high < 25
    assert low == -high


def test_entropy_is_not_drowned_by_the_zeros_of_a_relu():
    values = np.maximum(np.random.default_rng(6).normal(-1, 1, 200_000), 0).astype(np.float32)
    low, high = watch(Entropy(), values).range()

    assert low == 0
    assert high > 0.6 * values.max()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.integers(1, 10))
@example([0.0, 1.401298464324817e-45], 1)
def test_no_histogram_rule_leaves_the_range_that_was_seen(values, parts):
    batches = np.array_split(np.array(values, np.float32), parts)
    for name in ("histogram", "percentile", "entropy", "mse"):
        low, high = watch(make_observer(name), *batches).range()

        assert min(min(values), 0) <= low <= high <= max(max(values), 0)
