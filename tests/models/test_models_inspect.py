import json

import pytest

from ingot.core.errors import ModelError
from ingot.models.inspect import inspect_model
from ingot.models.load import load_model


def test_macs_and_parameters_of_the_cnn_are_those_counted_by_hand(cnn):
    found = inspect_model(cnn)

    convolutions = 8 * 8 * 8 * 1 * 9 + 8 * 8 * 8 * 8 * 9
    assert found.macs == convolutions + 8 * 4
    assert found.parameters == 8 * 9 + 4 * 8 + 8 * 8 * 9 + 8 + 8 * 4 + 4


def test_macs_of_the_encoder_grow_with_the_sequence(encoder):
    linear = 4 * 32 * 32 + 2 * 32 * 64

    assert inspect_model(encoder, sequence=10).macs == 10 * linear + 2 * 10 * 10 * 32


def test_the_share_that_each_family_reaches_is_told(cnn):
    by_name = {c.method: c for c in inspect_model(cnn).compressible}

    assert by_name["int8 dynamic"].layers == 1
    assert by_name["int8 static"].layers == 3
    assert "BatchNormalization" in by_name["int8 static"].reason


def test_the_json_form_is_json(cnn):
    assert json.loads(json.dumps(inspect_model(cnn).to_json()))["batch"] == 1


def test_subgraphs_are_inspected(shared_data, tmp_path):
    path = shared_data / "audio_models/silero_vad/silero_vad_16k_op15.onnx"

    assert inspect_model(load_model(path, root=tmp_path)).operators["Conv"] == 6


def test_an_unknown_source_lists_what_is_accepted(tmp_path):
    with pytest.raises(ModelError, match=r"\.onnx file; a \.pt2 file"):
        load_model(tmp_path / "net.xyz")


def test_a_model_folder_is_opened_again(cnn):
    assert load_model(cnn.path).digest == cnn.digest
