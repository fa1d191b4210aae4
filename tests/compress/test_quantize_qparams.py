import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.compress.quantize.qparams import affine, sqnr_db, symmetric, weight_grid
from ingot.core.errors import RecipeError

FINITE = st.floats(-1e4, 1e4, width=32)


@given(FINITE, FINITE, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_values_inside_the_range_come_back_within_one_step(a, b, positions):
    low, high = min(a, b), max(a, b)
    grid = affine(low, high)
    values = np.float32(low) + np.array(positions, np.float32) * np.float32(high - low)
    error = np.abs(grid.dequantize(grid.quantize(values)).astype(np.float64) - values)

    # Half a step for rounding a value, half for rounding the zero point.
    assert (error <= float(grid.scale) * 1.0001 + 1e-6 * np.abs(values)).all()


@given(st.lists(FINITE, min_size=1, max_size=30))
def test_weights_come_back_within_half_a_step(values):
    weight = np.array(values, np.float32)
    grid = weight_grid(weight, None)
    error = np.abs(grid.dequantize(grid.quantize(weight)).astype(np.float64) - weight)

    assert (error <= float(grid.scale) * 0.5001).all()


@given(FINITE, FINITE)
def test_zero_is_exact_on_every_grid(a, b):
    grid = affine(min(a, b), max(a, b))

    assert grid.dequantize(grid.quantize(np.zeros(1, np.float32)))[0] == 0


def test_weight_scales_are_the_largest_magnitude_over_127():
    grid = weight_grid(np.float32([[1.0, -127.0], [0.5, 0.25]]), 0)

    np.testing.assert_allclose(grid.scale, [1.0, 0.5 / 127], rtol=1e-6)
    np.testing.assert_array_equal(grid.zero_point, [0, 0])


def test_the_lowest_integer_is_not_used_for_weights():
    weight = np.float32([-1.0, 1.0])
    grid = weight_grid(weight, None)

    assert grid.quantize(weight).tolist() == [-127, 127]
    assert grid.quantize(np.float32([-9.0])).tolist() == [-127]


def test_a_dead_channel_gets_scale_one():
    grid = weight_grid(np.zeros((2, 3), np.float32), 0)

    assert grid.scale.tolist() == [1.0, 1.0]


def test_a_constant_zero_gets_scale_one():
    assert float(affine(0.0, 0.0).scale) == 1.0


def test_a_constant_activation_keeps_its_value():
    grid = affine(3.0, 3.0)

    assert grid.dequantize(grid.quantize(np.float32([3.0])))[0] == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_a_range_that_is_not_a_range_is_refused(low, high):
    with pytest.raises(RecipeError, match="must be finite with low <= high"):
        affine(low, high)


def test_weights_with_nan_are_refused():
    with pytest.raises(RecipeError, match="must be finite"):
        weight_grid(np.float32([[np.nan, 1.0]]), 0)


def test_symmetric_uses_the_wider_side():
    assert float(symmetric(-2.0, 1.0).scale) == pytest.approx(2 / 127)


def test_sqnr_of_a_tenth_of_noise_is_twenty_decibels():
    assert sqnr_db(np.float32([10.0]), np.float32([9.0])) == pytest.approx(20.0)


def test_sqnr_of_an_exact_copy_is_a_finite_number():
    assert sqnr_db(np.float32([1.0]), np.float32([1.0])) == 200.0


def test_sqnr_of_noise_without_signal_is_zero():
    assert sqnr_db(np.zeros(1, np.float32), np.ones(1, np.float32)) == 0.0
