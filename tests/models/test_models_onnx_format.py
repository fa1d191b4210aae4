import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ingot.core.errors import ModelError
from ingot.models.load import load_model
from ingot.models.onnx_format import read_onnx
from ingot.testing.tiny import tiny_cnn

REAL = (
    "face_detector/version-RFB-320.onnx",
    "magika/standard_v3_3/model.onnx",
    "audio_models/silero_vad/silero_vad_16k_op15.onnx",
    "audio_models/dnsmos/model_v8.onnx",
    "audio_models/basic_pitch/nmp.onnx",
)


def write(proto, path):
    path.write_bytes(proto.SerializeToString())
    return path


def weight(proto, name):
    return next(t for t in proto.graph.initializer if t.name == name)


def test_every_node_gets_a_unique_name(tmp_path):
    proto = tiny_cnn()
    for node in proto.graph.node:
        node.name = ""

    names = [n.name for n in read_onnx(write(proto, tmp_path / "m.onnx")).graph.node]

    assert len(set(names)) == len(names)
    assert names[0] == "Conv_c1"


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_cnn().SerializeToString()[:keep])

    with pytest.raises(ModelError, match=r"m\.onnx must be a whole"):
        read_onnx(path)


def test_a_newer_opset_is_refused_with_its_number(tmp_path):
    proto = tiny_cnn()
    proto.opset_import[0].version = 999

    with pytest.raises(ModelError, match="got opset 999"):
        read_onnx(write(proto, tmp_path / "m.onnx"))


def test_an_unknown_operator_is_named_with_its_node(tmp_path):
    proto = tiny_cnn()
    proto.graph.node[2].op_type = "Reluu"

    with pytest.raises(ModelError, match=r"'Relu_a1' uses ai\.onnx::Reluu.*'Relu'"):
        read_onnx(write(proto, tmp_path / "m.onnx"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, bad):
    proto = tiny_cnn()
    tensor = weight(proto, "w2")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] = bad
    tensor.CopyFrom(numpy_helper.from_array(values, "w2"))

    with pytest.raises(ModelError, match="tensor 'w2' holds 1 NaN or infinite"):
        read_onnx(write(proto, tmp_path / "m.onnx"))


def test_a_mask_of_minus_infinity_is_not_a_broken_weight(tmp_path):
    mask = numpy_helper.from_array(np.array([0, -np.inf], np.float32), "mask")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("x", "y")]
    nodes = [helper.make_node("Add", ["x", "mask"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [mask])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    assert len(read_onnx(write(proto, tmp_path / "m.onnx")).graph.node) == 1


def test_missing_external_data_is_named(tmp_path):
    onnx.save_model(
        tiny_cnn(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.data",
        size_threshold=0,
    )
    (tmp_path / "w.data").unlink()

    with pytest.raises(ModelError, match=r"'w\.data' is not there"):
        read_onnx(tmp_path / "m.onnx")


def test_external_data_comes_back_as_the_same_weights(tmp_path):
    want = numpy_helper.to_array(weight(tiny_cnn(), "w2"))
    onnx.save_model(
        tiny_cnn(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.data",
        size_threshold=0,
    )

    np.testing.assert_array_equal(
        numpy_helper.to_array(weight(read_onnx(tmp_path / "m.onnx"), "w2")), want
    )


@pytest.mark.parametrize("file", REAL)
def test_real_files_load(shared_data, tmp_path, file):
    model = load_model(shared_data / file, root=tmp_path)

    assert model.lineage.source == "onnx"
    assert model.signature.outputs


def test_weights_that_are_listed_as_inputs_are_fixed(tmp_path):
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    inputs = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 2]),
    ]
    end = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([node], "old", inputs, [end], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "old.onnx")

    read = read_onnx(tmp_path / "old.onnx")

    assert [i.name for i in read.graph.input] == ["x"]
    assert [w.name for w in read.graph.initializer] == ["w"]
