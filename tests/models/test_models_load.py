import onnx
import pytest

from ingot.core.errors import ModelError
from ingot.models.load import load_model
from ingot.models.network import OnnxNetwork
from ingot.testing.tiny import tiny_cnn


def test_weights_go_only_with_a_factory(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_cnn().SerializeToString())

    with pytest.raises(ModelError, match="go with a torch factory"):
        load_model(path, weights=tmp_path / "w.npz")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ModelError, match="a folder of another kind"):
        load_model(tmp_path)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="tokenizer must be a file"):
        load_model("m.onnx", tokenizer=tmp_path / "no.json")


def test_editing_a_copy_of_a_network_leaves_the_first_as_it_is():
    first = OnnxNetwork(tiny_cnn())
    second = first.copy()

    second.proto.graph.node[0].name = "changed"

    assert first.proto.graph.node[0].name == "Conv_c1"


def test_every_node_of_a_graph_is_a_layer():
    proto = tiny_cnn()

    names = [name for name, _ in OnnxNetwork(proto).layers(onnx.NodeProto)]

    assert names == [node.name for node in proto.graph.node]
