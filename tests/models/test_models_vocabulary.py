import onnx
import pytest
from onnx import helper

from ingot.core.errors import DataError
from ingot.models.onnx_format import read_onnx
from ingot.models.vocabulary import check_tokens, vocabulary_size
from ingot.testing.tiny import tiny_cnn


def test_the_vocabulary_is_as_long_as_the_table_that_ids_are_looked_up_in(encoder):
    assert vocabulary_size(read_onnx(encoder.onnx_path)) == 50


def test_ids_are_followed_through_a_cast():
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["wide"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["y"]),
    ]
    table = helper.make_tensor("table", onnx.TensorProto.FLOAT, [7, 2], [0.0] * 14)
    proto = helper.make_model(helper.make_graph(nodes, "g", [], [], [table]))

    assert vocabulary_size(proto) == 7


def test_a_network_without_tokens_has_no_vocabulary():
    assert vocabulary_size(tiny_cnn()) == 0


def test_ids_of_another_tokenizer_are_refused(encoder, tokens):
    strange = tokens | {"input_ids": tokens["input_ids"] + 60}

    with pytest.raises(DataError, match="must be from 0 to 49.*made by another tokenizer"):
        check_tokens(encoder, strange)
    assert check_tokens(encoder, tokens) is None


def test_negative_ids_are_refused(encoder, tokens):
    with pytest.raises(DataError, match="got -1 to"):
        check_tokens(encoder, {"input_ids": tokens["input_ids"] * 0 - 1})
