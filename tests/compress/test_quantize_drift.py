import numpy as np
import pytest

import ingot
from ingot.compress.quantize.drift import Drift, _overlap, range_drift
from ingot.testing.tiny import toy_images


def test_two_samples_of_one_source_do_not_drift(cnn):
    images, _ = toy_images(128)
    drift = range_drift(
        cnn, ingot.Split({"image": images[:64]}), ingot.Split({"image": images[64:]})
    )

    assert drift.median > 0.8
    assert drift.warning == ""


def test_pictures_that_are_scaled_otherwise_are_found_and_the_tensors_named(cnn):
    images, _ = toy_images(128)
    drift = range_drift(
        cnn, ingot.Split({"image": images[:64]}), ingot.Split({"image": 255 * images[64:]})
    )

    assert drift.overlap["image"] == pytest.approx(1 / 255, rel=0.2)
    assert "overlap by" in drift.warning
    assert "image (" in drift.warning


def test_overlap_is_what_both_share_over_what_either_covers():
    assert _overlap((0.0, 2.0), (1.0, 4.0)) == pytest.approx(1 / 4)
    assert _overlap((0.0, 1.0), (2.0, 3.0)) == 0
    assert _overlap((3.0, 3.0), (3.0, 3.0)) == 1


def test_the_warning_names_the_three_that_differ_most():
    drift = Drift({"a": 0.5, "b": 0.1, "c": 0.2, "d": 0.55, "e": 0.3})

    assert drift.warning.count("%)") == 3
    assert "b (10%), c (20%), e (30%)" in drift.warning
    assert np.isclose(drift.median, 0.3)
