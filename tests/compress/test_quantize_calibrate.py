import numpy as np
import pytest

from ingot.compress.quantize.calibrate import calibrate, channel_peaks, unpadded_batches
from ingot.compress.quantize.observers import MinMax
from ingot.core.errors import DataError, RecipeError
from ingot.data.data import Split
from ingot.testing.tiny import tiny_cnn, tiny_transformer, toy_images, toy_tokens


def test_masked_rows_run_in_groups_of_one_length_without_padding():
    batches = list(unpadded_batches(Split(toy_tokens(20))))

    assert all(b["attention_mask"].all() for b in batches)
    assert sum(len(b["input_ids"]) for b in batches) == 20


def test_rows_padded_on_the_left_are_left_alone():
    mask = np.array([[0, 1, 1]])
    (batch,) = unpadded_batches(Split({"input_ids": mask, "attention_mask": mask}))

    assert batch["input_ids"].shape == (1, 3)


def test_padding_does_not_change_the_ranges():
    short = toy_tokens(8, 12)
    padded = {n: np.pad(a, ((0, 0), (0, 30))) for n, a in short.items()}
    ranges = [
        calibrate(tiny_transformer(), Split(feeds), ["h", "gelu"], make=MinMax)
        for feeds in (short, padded)
    ]

    assert ranges[0] == ranges[1]


def test_ranges_of_inputs_and_inner_tensors_are_those_of_the_rows():
    images = toy_images(20)[0]
    ranges = calibrate(tiny_cnn(), Split({"image": images}), ["image", "a1"], make=MinMax)

    assert ranges["image"] == (float(images.min()), float(images.max()))
    assert ranges["a1"][0] == 0


def test_the_only_input_may_be_called_star():
    images = toy_images(4)[0]

    assert (
        calibrate(tiny_cnn(), Split({"*": images}), ["image"], make=MinMax)["image"][1]
        == images.max()
    )


def test_channel_peaks_are_largest_magnitudes_along_the_last_axis():
    images = toy_images(12)[0]
    peaks = channel_peaks(tiny_cnn(), Split({"image": images}), ["image"])

    np.testing.assert_array_equal(peaks["image"], np.abs(images).max(axis=(0, 1, 2)))


def test_a_tensor_that_is_not_finite_is_named():
    images = toy_images(4)[0]
    images[0, 0, 0, 0] = np.inf

    with pytest.raises(RecipeError, match="Tensor 'image' must stay finite"):
        calibrate(tiny_cnn(), Split({"image": images}), ["image"], make=MinMax)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 1, 9, 9), np.float32), "must have shape"),
        (np.zeros((2, 64), np.float32), "must have 4 axes"),
        (np.array([["a"]]), "must be float32"),
        (np.zeros((0, 1, 8, 8), np.float32), "at least one row"),
    ],
)
def test_rows_that_do_not_fit_are_refused(images, message):
    with pytest.raises(DataError, match=message):
        calibrate(tiny_cnn(), Split({"image": images}), ["image"], make=MinMax)


def test_a_missing_input_is_named():
    with pytest.raises(DataError, match="'attention_mask' is missing"):
        calibrate(
            tiny_transformer(), Split({"input_ids": np.ones((1, 3), np.int64)}), ["h"], make=MinMax
        )


def test_a_graph_that_does_not_load_says_so():
    proto = tiny_cnn()
    proto.graph.node[1].input[0] = "gone"

    with pytest.raises(RecipeError, match="Calibration needs a model that ONNX Runtime can run"):
        calibrate(proto, Split({"image": toy_images(4)[0]}), ["a1"], make=MinMax)


def test_a_graph_of_one_row_per_call_has_the_ranges_of_one_of_many():
    images = toy_images(12)[0]
    fixed = tiny_cnn()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del fixed.graph.value_info[:]

    found, wanted = (
        calibrate(proto, Split({"image": images}), ["image", "a1"], make=MinMax)
        for proto in (fixed, tiny_cnn())
    )

    assert found["image"] == wanted["image"]
    np.testing.assert_allclose(found["a1"], wanted["a1"], rtol=1e-5)
