"""Smoothing that is folded into norms."""

import numpy as np
import onnx
import pytest
from graph_answers import answer, weight
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot.compress.quantize.smooth_norms import Smooth
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Data, Split, Task
from ingot.models.network import OnnxNetwork
from ingot.testing.check_method import check_method
from ingot.testing.tiny import tiny_transformer, toy_tokens

LOUD = 3  # the channel that the norm makes a hundred times louder than the others


def behind_a_norm(kind: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """x (batch, 8), a norm with one loud channel, a linear layer."""
    rng = np.random.default_rng(0)
    gain = np.ones(8, np.float32)
    gain[LOUD] = 100
    weights = {"w": rng.normal(size=(8, 8)).astype(np.float32), "gain": gain}
    if kind == "layer":
        weights["shift"] = rng.normal(size=8).astype(np.float32)
        nodes = [helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], name="norm")]
    else:
        weights |= {"two": np.float32(2), "axes": np.int64([-1]), "tiny": np.float32(1e-6)}
        nodes = [
            helper.make_node("Pow", ["x", "two"], ["square"], name="pow"),
            helper.make_node("ReduceMean", ["square", "axes"], ["mean"], name="mean"),
            helper.make_node("Add", ["mean", "tiny"], ["safe"], name="add"),
            helper.make_node("Sqrt", ["safe"], ["root"], name="sqrt"),
            helper.make_node("Div", ["x", "root"], ["unit"], name="div"),
            helper.make_node("Mul", ["unit", "gain"], ["n"], name="norm"),
        ]
    nodes.append(helper.make_node("MatMul", ["n", "w"], ["y"], name="layer"))
    graph = helper.make_graph(
        nodes,
        "normed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    proto.ir_version = 8
    return proto, {"x": rng.normal(size=(64, 8)).astype(np.float32)}


def apply(method, proto, feeds, run=None):
    data = Data({"calibration": Split(feeds)}, Task.NONE, "digest")
    made = method.apply(OnnxNetwork(proto), data, run or Run()).proto
    onnx.checker.check_model(made, full_check=True)
    return made


def gains(proto: onnx.ModelProto) -> np.ndarray:
    return weight(proto, "norm")


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_answers_stay_and_no_node_is_added(kind):
    proto, feeds = behind_a_norm(kind)
    kinds = [n.op_type for n in proto.graph.node]
    before = answer(proto, feeds)
    made = apply(Smooth(), proto, feeds)

    assert [n.op_type for n in made.graph.node] == kinds
    np.testing.assert_allclose(answer(made, feeds), before, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_factor_is_that_of_the_paper(kind):
    proto, feeds = behind_a_norm(kind)
    x = feeds["x"].astype(np.float64)
    values = {w.name: numpy_helper.to_array(w) for w in proto.graph.initializer}
    if kind == "layer":
        unit = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        normed = unit * values["gain"] + values["shift"]
    else:
        normed = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) * values["gain"]
    peaks, rows = np.abs(normed).max(0), np.abs(values["w"]).max(1)
    expected = peaks**0.75 / rows**0.25

    made = apply(Smooth(strength=0.75), proto, feeds)

    np.testing.assert_allclose(values["gain"] / gains(made), expected, rtol=1e-3)


def test_the_loud_channel_is_no_longer_alone():
    proto, feeds = behind_a_norm("layer")
    run = Run()
    made = apply(Smooth(strength=1.0), proto, feeds, run)
    (name, facts), *_ = run.records

    assert name == "layer"
    assert facts["most"] / facts["least"] > 30
    assert gains(made)[LOUD] / np.median(gains(made)) < 3


def test_a_network_whose_norms_the_residual_stream_reads_is_refused():
    with pytest.raises(RecipeError, match="Post-norm"):
        apply(Smooth(), tiny_transformer(), toy_tokens(8))


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5])
def test_a_strength_that_makes_no_sense_is_refused(strength):
    with pytest.raises(RecipeError, match="strength must be"):
        Smooth(strength=strength)


def test_it_keeps_the_rules_of_every_method(tmp_path):
    proto, feeds = behind_a_norm("layer")
    path = tmp_path / "normed.onnx"
    onnx.save(proto, path)
    halves = {"calibration": feeds["x"][:32], "test": feeds["x"][32:]}
    data = ingot.make_data({n: ingot.Split({"x": x}) for n, x in halves.items()}, task="none")

    check_method(Smooth(), ingot.load_model(path), data)
