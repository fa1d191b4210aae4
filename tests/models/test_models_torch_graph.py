import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ingot.compress.quantize.prepare import prepare
from ingot.core.errors import ModelError
from ingot.models.torch_graph import TorchGraph
from ingot.testing.tiny import tiny_cnn, tiny_transformer, toy_images, toy_tokens


def _answers(proto, feeds):
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, feeds)


def _one(operator, inputs, constants=(), opset=18, **attributes):
    """Return the graph of one node, its first inputs fed and the others constant."""
    names = [f"x{i}" for i in range(len(inputs))] + [f"c{i}" for i in range(len(constants))]
    types = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("int64"): TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info(n, types[v.dtype], v.shape)
         for n, v in zip(names, inputs, strict=False)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(v, f"c{i}") for i, v in enumerate(constants)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


X = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(4, 4, 3, 3)).astype(np.float32)
CASES = [
    ("Conv", (X,), (W,), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (X,), (W[:, :2],), {"group": 2, "pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    ("ConvTranspose", (X,), (W,), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", (X,), (), {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0], "strides": [2, 2]}),
    ("AveragePool", (X,), (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("GlobalAveragePool", (X,), (), {}),
    ("Pad", (X,), (np.array([0, 0, 2, 1, 0, 0, 1, 2]),), {"mode": "reflect"}),
    ("Pad", (X,), (np.array([0, 0, 2, 1, 0, 0, 1, -2]),), {}),
    ("Gemm", (X[0, 0],), (W[:2, 0].reshape(3, 6), W[0, 0, 0]), {"transB": 1, "alpha": 0.5}),
    ("Slice", (X,), ([5, 1], [-100, 4], [3, 1], [-2, 2]), {}),
    ("Gather", (X,), (np.array([[0, -1], [2, 1]]),), {"axis": 2}),
    ("Gather", (X[0, 0, 0],), (np.array(-1),), {}),
    ("ReduceMean", (X,), (np.array([1, -1]),), {"keepdims": 0}),
    ("ReduceL2", (X,), (np.array([1]),), {}),
    ("Transpose", (X,), (), {"perm": [0, 2, 3, 1]}),
    ("Reshape", (X,), (np.array([0, -1, 6]),), {}),
    ("LayerNormalization", (X,), (W[0, 0].ravel()[:6], W[1, 0].ravel()[:6]), {"epsilon": 1e-3}),
    ("InstanceNormalization", (X,), (W[0, :, 0, 0], W[1, :, 0, 0]), {}),
    ("Clip", (X,), (np.float32(-0.5), np.float32(0.25)), {}),
    ("Softmax", (X,), (), {"axis": 1}),
    ("HardSigmoid", (X,), (), {}),
    ("HardSwish", (X,), (), {}),
    ("LeakyRelu", (X,), (), {}),
    ("Expand", (X[:, :1],), (np.array([2, 4, 6, 6]),), {}),
    ("DepthToSpace", (X,), (), {"blocksize": 2}),
    ("DepthToSpace", (X,), (), {"blocksize": 2, "mode": "CRD"}),
    ("Trilu", (X,), (np.array(1),), {"upper": 0}),
    ("Tile", (X,), (np.array([1, 2, 1, 1]),), {}),
    ("CumSum", (X,), (np.array(1),), {}),
    ("Flatten", (X,), (), {"axis": 2}),
    ("GatherND", (X,), (np.array([[[0], [1]], [[2], [3]]]),), {"batch_dims": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "inputs", "constants", "attributes"), CASES)
def test_an_operator_gives_what_onnx_runtime_gives(operator, inputs, constants, attributes):
    constants = [np.asarray(c) for c in constants]
    proto = _one(operator, inputs, constants, **attributes)

    got = TorchGraph(proto).run({f"x{i}": v for i, v in enumerate(inputs)})["y"].numpy()

    want = _answers(proto, {f"x{i}": v for i, v in enumerate(inputs)})[0]
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_a_whole_network_gives_what_onnx_runtime_gives(kind, prepared):
    proto = tiny_cnn() if kind == "cnn" else tiny_transformer()
    feeds = {"image": toy_images(3)[0]} if kind == "cnn" else toy_tokens(3)
    want = _answers(proto, feeds)
    if prepared:
        prepare(proto)

    got = TorchGraph(proto).run(feeds)

    for a, b in zip(got.values(), want, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-5)


def test_gradients_reach_the_weights_that_were_asked_for_and_no_others():
    proto = tiny_cnn()
    prepare(proto)
    graph = TorchGraph(proto)
    first, *others = graph.float_weights(2)
    graph.trainable([first])

    graph.run({"image": toy_images(2)[0]})["logits"].square().sum().backward()

    assert graph.weights[first].grad.abs().sum() > 0
    assert all(graph.weights[name].grad is None for name in others)


def test_what_was_learnt_is_written_back():
    proto = tiny_cnn()
    prepare(proto)
    graph = TorchGraph(proto)
    name = graph.float_weights(2)[0]
    with torch.no_grad():
        graph.weights[name].mul_(2)

    graph.write_back(proto, [name])

    again = TorchGraph(proto).weights[name]
    assert torch.equal(again, graph.weights[name])


def test_a_part_of_the_graph_runs_from_inner_tensors():
    proto = tiny_cnn()
    prepare(proto)
    graph = TorchGraph(proto)
    inner = proto.graph.node[0].output[0]
    image = {"image": toy_images(2)[0]}
    value = graph.run(image, [inner])[inner]

    from_inner = graph.run({inner: value})["logits"]

    assert torch.equal(from_inner, graph.run(image)["logits"])


def test_an_input_that_is_missing_is_named():
    with pytest.raises(ModelError, match="'image' is not"):
        TorchGraph(tiny_cnn()).run({})


def test_an_operator_without_a_torch_form_is_named():
    proto = _one("Conv", (X,), (W,))
    proto.graph.node[0].op_type = "NonMaxSuppression"

    with pytest.raises(ModelError, match="NonMaxSuppression"):
        TorchGraph(proto)


def test_a_step_that_fails_is_named_with_its_shapes():
    proto = _one("Conv", (X,), (W,))
    proto.graph.node[0].name = "first"

    with pytest.raises(ModelError, match=r"'first' \(Conv\).*\(2, 3, 6, 6\)"):
        TorchGraph(proto).run({"x0": X[:, :3]})


def test_gelu_written_out_becomes_one_step():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    constants = {"r": 2**0.5, "one": 1.0, "half": 0.5}
    nodes = [
        helper.make_node("Div", ["x", "r"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["d"]),
        helper.make_node("Mul", ["d", "half"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.float32(v), n) for n, v in constants.items()]
    proto = helper.make_model(helper.make_graph(nodes, "gelu", [x], [y], weights))
    graph = TorchGraph(proto)

    got = graph.run({"x": np.array([-1.0, 0.0, 2.0], np.float32)})["y"]

    assert [s.operator for s in graph._steps] == ["Gelu"]
    np.testing.assert_allclose(got, [-0.158655, 0.0, 1.954500], atol=1e-5)


def test_an_erf_that_is_no_gelu_stays_as_it_is():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["d"]),
        helper.make_node("Mul", ["d", "k"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.float32(v), n) for n, v in {"k": 3, "one": 1}.items()]
    y = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    proto = helper.make_model(helper.make_graph(nodes, "erf", [x], [y], weights))

    got = TorchGraph(proto).run({"x": np.ones(1, np.float32)})["y"]

    np.testing.assert_allclose(got, [2.0 * 3.0], atol=1e-3)  # erf(3) = 0.99998
