import numpy as np
import onnx
import pytest
from graph_answers import answer
from onnx import TensorProto, helper, numpy_helper

from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Data, Split, Task
from ingot.models.network import OnnxNetwork
from ingot.testing.tiny import tiny_cnn, tiny_transformer, toy_images, toy_tokens


def copy(proto):
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    return twin


def model(nodes, weights, *, size, out_size, opset=17):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *out_size])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 8
    return proto


def test_batch_norm_is_folded_and_answers_stay_the_same():
    feeds = {"image": toy_images(4)[0]}
    before = answer(tiny_cnn(), feeds)
    graph = prepare(tiny_cnn())

    assert "BatchNormalization" not in {n.op_type for n in graph.nodes}
    np.testing.assert_allclose(answer(graph.proto, feeds), before, atol=1e-5)


def test_a_transformer_keeps_its_answers():
    feeds = toy_tokens(4)
    before = answer(tiny_transformer(), feeds)

    np.testing.assert_allclose(answer(prepare(tiny_transformer()).proto, feeds), before, atol=1e-6)


def test_weights_that_an_old_file_lists_as_inputs_are_weights():
    proto = tiny_cnn()
    for weight in proto.graph.initializer:
        shape = list(weight.dims)
        proto.graph.input.append(
            helper.make_tensor_value_info(weight.name, weight.data_type, shape)
        )
    feeds = {"image": toy_images(4)[0]}
    before = answer(tiny_cnn(), feeds)

    found = prepare(proto).proto

    assert [i.name for i in found.graph.input] == ["image"]
    np.testing.assert_allclose(answer(found, feeds), before, atol=1e-5)


def with_branches():
    """`y` = (conv(x) or relu(conv(x))) + `shift`, as `flag` says; both are read inside an If."""
    inside = [
        helper.make_graph(
            [
                helper.make_node("Add", ["read", "shift"], [f"{name}_sum"]),
                helper.make_node(operator, [f"{name}_sum"], [f"{name}_out"]),
            ],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name, operator in (("positive", "Relu"), ("any", "Identity"))
    ]
    nodes = [
        helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(False))),
        helper.make_node("Constant", [], ["shift"],
                         value=numpy_helper.from_array(np.float32([0.5]))),
        helper.make_node("Conv", ["x", "w"], ["conv"], kernel_shape=[1, 1]),
        helper.make_node("Identity", ["conv"], ["read"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=inside[0], else_branch=inside[1]),
    ]  # fmt: skip
    w = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    return model(nodes, {"w": w}, size=[3, 2, 2], out_size=[4, 2, 2])


def test_what_a_branch_reads_from_around_it_stays():
    feeds = {"x": toy_images(4)[0].reshape(-1)[:96].reshape(8, 3, 2, 2)}
    before = answer(with_branches(), feeds)

    np.testing.assert_allclose(answer(prepare(with_branches()).proto, feeds), before, atol=1e-6)


def test_a_network_with_branches_is_quantized_around_them():
    feeds = {"x": toy_images(4)[0].reshape(-1)[:96].reshape(8, 3, 2, 2)}
    before = answer(with_branches(), feeds)
    data = Data({"calibration": Split(feeds)}, Task.NONE, "")

    found = QuantizeStatic().apply(OnnxNetwork(with_branches()), data, Run()).proto

    assert "QuantizeLinear" in {n.op_type for n in found.graph.node}
    assert np.abs(answer(found, feeds) - before).max() < 0.02 * np.ptp(before)


def test_identity_and_inference_dropout_go():
    w = np.eye(3, dtype=np.float32)
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b", "keep"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    graph = prepare(model(nodes, {"w": w}, size=[3], out_size=[3]))

    assert [n.op_type for n in graph.nodes] == ["MatMul"]
    assert graph.nodes[0].input[0] == "x"


def test_an_identity_that_names_the_output_stays():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Identity", ["a"], ["y"]),
    ]
    graph = prepare(model(nodes, {"w": np.eye(3, dtype=np.float32)}, size=[3], out_size=[3]))

    assert [n.op_type for n in graph.nodes] == ["MatMul", "Identity"]


def test_a_dropout_that_trains_stays():
    nodes = [
        helper.make_node("Dropout", ["x", "", "training"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    weights = {"w": np.eye(3, dtype=np.float32), "training": np.array(True)}
    graph = prepare(model(nodes, weights, size=[3], out_size=[3]))

    assert graph.nodes[0].op_type == "Dropout"


def test_constant_nodes_and_expressions_become_weights():
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(w)),
        helper.make_node("Transpose", ["c"], ["wt"]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
    ]
    graph = prepare(model(nodes, {}, size=[3], out_size=[2]))

    assert [n.op_type for n in graph.nodes] == ["MatMul"]
    np.testing.assert_array_equal(graph.value("wt"), w.T)
    assert set(graph.weights) == {"wt"}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_factors_and_transposition_are_folded(transposed):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(3, 2)).astype(np.float32), np.float32([0.5, -1])
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=2.0, beta=3.0, transB=transposed)
    weights = {"w": np.ascontiguousarray(w.T) if transposed else w, "b": b}
    graph = prepare(model([node], weights, size=[3], out_size=[2]))
    x = rng.normal(size=(4, 3)).astype(np.float32)

    assert not graph.nodes[0].attribute
    np.testing.assert_allclose(answer(graph.proto, {"x": x}), 2 * x @ w + 3 * b, rtol=1e-5)


def test_a_batch_norm_behind_a_branching_convolution_stays():
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(2, 1, 1, 1)).astype(np.float32)}
    weights |= {n: np.ones(2, np.float32) for n in ("g", "o", "m", "v")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "o", "m", "v"], ["n"]),
        helper.make_node("Add", ["c", "n"], ["y"]),
    ]
    graph = prepare(model(nodes, weights, size=[1, 2, 2], out_size=[2, 2, 2]))

    assert "BatchNormalization" in {n.op_type for n in graph.nodes}


def test_an_old_opset_is_raised():
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    old = model([node], {"w": np.eye(3, dtype=np.float32)}, size=[3], out_size=[3], opset=11)

    assert prepare(old).proto.opset_import[0].version == 13


def test_a_quantized_model_is_refused_by_node():
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "y"], name="measure")

    with pytest.raises(RecipeError, match="DynamicQuantizeLinear node 'measure'"):
        prepare(model([node], {}, size=[3], out_size=[3]))


def test_gelu_takes_the_form_that_engines_fuse():
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["p"]),
        helper.make_node("Mul", ["half", "p"], ["h"]),
        helper.make_node("Mul", ["x", "h"], ["y"]),
    ]
    weights = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    weights = {n: np.array(v) for n, v in weights.items()}
    proto = model(nodes, weights, size=[3], out_size=[3])
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    before = answer(copy(proto), {"x": x})
    graph = prepare(proto)

    assert list(graph.nodes[-2].input) == ["x", "p"]
    np.testing.assert_allclose(answer(graph.proto, {"x": x}), before, rtol=1e-6)
