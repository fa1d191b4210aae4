import numpy as np
import onnx
import pytest
from graph_answers import answer, sqnr, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot.compress.quantize.equalize import Equalize, equalizing_factor
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Data, Split, Task
from ingot.models.network import OnnxNetwork
from ingot.testing.check_method import check_method
from ingot.testing.tiny import tiny_cnn, tiny_transformer

RNG = np.random.default_rng(0)
IMAGES = {"x": RNG.normal(size=(8, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(autouse=True)
def _same_weights_whichever_tests_run(monkeypatch):
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def graph(nodes, weights, shape=("n", 3, 8, 8), outputs=("y",)):
    """Return a model from rows of operator, inputs, output and attributes, and weights by name."""
    made = [helper.make_node(op, i.split(), [o], name=o, **options) for op, i, o, options in nodes]
    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()]
    proto = helper.make_model(
        helper.make_graph(
            made,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            stored,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    proto.ir_version = 8
    return onnx.shape_inference.infer_shapes(proto)  # outputs need a shape


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def uneven(channels):
    return np.exp(RNG.uniform(np.log(0.05), np.log(20), channels)).astype(np.float32)


def apply(proto, run=None):
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    made = Equalize().apply(OnnxNetwork(found), None, run or Run()).proto
    onnx.checker.check_model(made, full_check=True)
    return made


def assert_same(made, proto):
    truth = answer(proto, IMAGES)
    np.testing.assert_allclose(answer(made, IMAGES), truth, atol=1e-4 * abs(truth).max())


def chain(*between):
    """Return conv -> steps -> conv with channels of uneven ranges."""
    factor = uneven(12)
    steps = [("Conv", "x w1 b1", "c1", {"pads": [1, 1, 1, 1]})]
    tensor = "c1"
    for i, (op, extra, options) in enumerate(between):
        steps.append((op, f"{tensor} {extra}".strip(), f"s{i}", options))
        tensor = f"s{i}"
    steps.append(("Conv", f"{tensor} w2 b2", "y", {}))
    weights = {
        "w1": normal(12, 3, 3, 3) * factor[:, None, None, None],
        "b1": normal(12) * factor,
        "w2": normal(5, 12, 1, 1) / factor[:, None, None],
        "b2": normal(5),
        "slope": normal(12, 1, 1),
        "shift": normal(1, 12, 1, 1),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "two": np.float32(2),
        "low": np.float32(0),
        "six": np.float32(6),
    }
    return graph(steps, weights)


def two_layers(first, second, bias=None, step="Relu"):
    bias = np.zeros(len(second)) if bias is None else bias
    nodes = [
        ("Gemm", "x w1 b1", "a", {}),
        (step, "a", "h", {}),
        ("MatMul", "h w2", "y", {}),
    ]
    weights = {"w1": first, "b1": bias, "w2": second}
    return graph(nodes, {n: np.float32(v) for n, v in weights.items()}, shape=("n", len(first)))


def test_both_ranges_become_the_root_of_their_product():
    made = apply(two_layers([[1.0, -16.0], [0.5, 4.0]], [[4.0, 1.0], [-4.0, 2.0]], [1.0, 8.0]))

    np.testing.assert_allclose(weight(made, "a"), [[2.0, -8.0], [1.0, 2.0]])
    np.testing.assert_allclose(weight(made, "y"), [[2.0, 0.5], [-8.0, 4.0]])
    np.testing.assert_allclose(weight(made, "a", 2), [2.0, 4.0])


def test_channels_without_weights_on_one_side_keep_their_scale():
    found = equalizing_factor(np.array([0.0, 4.0, 9.0]), np.array([3.0, 0.0, 1.0]))

    np.testing.assert_allclose(found, [1, 1, 3])


def test_a_dead_layer_stays_finite():
    made = apply(two_layers(np.zeros((2, 3)), np.ones((3, 2)), np.ones(3)))

    np.testing.assert_array_equal(weight(made, "a"), 0)
    np.testing.assert_array_equal(weight(made, "y"), 1)


BETWEEN = {
    "nothing": (),
    "Relu": (("Relu", "", {}),),
    "LeakyRelu": (("LeakyRelu", "", {"alpha": 0.1}),),
    "PRelu": (("PRelu", "slope", {}),),
    "MaxPool": (("Relu", "", {}), ("MaxPool", "", {"kernel_shape": [2, 2]})),
    "AveragePool": (("AveragePool", "", {"kernel_shape": [3, 3], "strides": [2, 2]}),),
    "GlobalAveragePool": (("Relu", "", {}), ("GlobalAveragePool", "", {})),
    "ReduceMean": (("ReduceMean", "", {"axes": [2, 3]}),),
    "Pad": (("Relu", "", {}), ("Pad", "pads", {})),
    "Mul": (("Mul", "slope", {}),),
    "Div": (("Div", "two", {}),),
    "Add": (("Add", "slope", {}), ("Relu", "", {})),
    "Add of rank 4": (("Add", "shift", {}), ("Relu", "", {})),
}


@pytest.mark.parametrize("steps", BETWEEN.values(), ids=BETWEEN)
def test_answers_stay_the_same_through_homogeneous_steps(steps):
    proto = chain(*steps)
    made = apply(proto)

    assert_same(made, proto)
    ranges = np.abs(weight(made, "c1")).max(axis=(1, 2, 3))
    np.testing.assert_allclose(ranges, np.abs(weight(made, "y")).max(axis=(0, 2, 3)), rtol=2e-3)


LEFT = {
    "Clip": (("Clip", "low six", {}),),
    "HardSwish": (("HardSwish", "", {}),),
    "Tanh": (("Tanh", "", {}),),
    "Sigmoid": (("Sigmoid", "", {}),),
    "Exp": (("Exp", "", {}),),
    "InstanceNormalization": (("InstanceNormalization", "b1 b1", {}),),
}


@pytest.mark.parametrize("name", sorted(LEFT))
def test_steps_that_tell_scales_apart_refuse_the_pair_by_name(name):
    with pytest.raises(RecipeError, match=f"'c1': {name} 's0' is in between"):
        apply(chain(*LEFT[name]))


def test_channels_that_are_padded_are_no_longer_those_of_the_layer():
    nodes = [("Conv", "x w1", "a", {}), ("Pad", "a pads", "h", {}), ("Conv", "h w2", "y", {})]
    pads = np.array([0, 1, 0, 0, 0, 1, 0, 0])
    weights = {"w1": normal(4, 3, 1, 1), "pads": pads, "w2": normal(2, 6, 1, 1)}

    with pytest.raises(RecipeError, match="'a': Pad 'h' is in between"):
        apply(graph(nodes, weights))


def test_a_step_is_judged_by_the_input_it_reads():
    nodes = [("Gemm", "x w1", "a", {}), ("Div", "one a", "h", {}), ("MatMul", "h w2", "y", {})]
    weights = {"w1": normal(4, 6), "one": np.float32(1), "w2": normal(6, 2)}

    with pytest.raises(RecipeError, match="Div 'h' is in between"):
        apply(graph(nodes, weights, shape=("n", 4)))


def test_a_result_that_others_read_stays():
    nodes = [
        ("Gemm", "x w1", "a", {}),
        ("Relu", "a", "h", {}),
        ("MatMul", "h w2", "b", {}),
        ("Add", "h b", "y", {}),
    ]
    weights = {"w1": normal(4, 4), "w2": normal(4, 4)}

    with pytest.raises(RecipeError, match="'a': its result has 2 readers"):
        apply(graph(nodes, weights, shape=("n", 4)))


def test_a_result_that_is_given_out_stays():
    nodes = [("Gemm", "x w1", "a", {}), ("Relu", "a", "h", {}), ("MatMul", "h w2", "y", {})]
    weights = {"w1": normal(4, 4), "w2": normal(4, 4)}

    with pytest.raises(RecipeError, match="'a': its result is an output"):
        apply(graph(nodes, weights, shape=("n", 4), outputs=("y", "h")))


def test_networks_without_pairs_are_refused():
    for proto in (tiny_cnn(), tiny_transformer()):
        with pytest.raises(RecipeError, match="no such pair"):
            apply(proto)


def inverted_residual(factor=1.0):
    """Return pointwise, depthwise, pointwise with ReLU between: a chain of three layers."""
    a, b = (uneven(10) if factor != 1 else np.ones(10, np.float32) for _ in range(2))
    nodes = [
        ("Conv", "x w1 b1", "c1", {}),
        ("Relu", "c1", "r1", {}),
        ("Conv", "r1 w2 b2", "c2", {"group": 10, "pads": [1, 1, 1, 1]}),
        ("Relu", "c2", "r2", {}),
        ("Conv", "r2 w3", "c3", {}),
        ("GlobalAveragePool", "c3", "p", {}),
        ("Flatten", "p", "f", {}),
        ("Gemm", "f w4 b4", "y", {}),
    ]
    weights = {
        "w1": normal(10, 3, 1, 1) * a[:, None, None, None],
        "b1": normal(10) * a,
        "w2": normal(10, 1, 3, 3) * (b / a)[:, None, None, None],
        "b2": normal(10) * b,
        "w3": normal(6, 10, 1, 1) / b[:, None, None],
        "w4": normal(6, 4),
        "b4": normal(4),
    }
    return graph(nodes, weights)


def test_depthwise_chains_settle_with_equal_ranges_everywhere():
    proto = inverted_residual(factor=2)
    made = apply(proto)
    point, depth, last = (np.abs(weight(made, n)) for n in ("c1", "c2", "c3"))

    each = depth.max(axis=(1, 2, 3))
    np.testing.assert_allclose(point.max(axis=(1, 2, 3)), each, rtol=5e-3)
    np.testing.assert_allclose(each, last.max(axis=(0, 2, 3)), rtol=5e-3)
    assert_same(made, proto)


def test_grouped_convolutions_scale_the_channels_of_their_own_group():
    factor = uneven(4)
    nodes = [
        ("Conv", "x w1", "c1", {}),
        ("Relu", "c1", "r1", {}),
        ("Conv", "r1 w2", "y", {"group": 2}),
    ]
    weights = {"w1": normal(4, 3, 1, 1) * factor[:, None, None, None], "w2": normal(6, 2, 3, 3)}
    proto = graph(nodes, weights)
    made = apply(proto)

    by_group = np.abs(weight(made, "y")).reshape(2, 3, 2, 9).max(axis=(1, 3)).ravel()
    np.testing.assert_allclose(np.abs(weight(made, "c1")).max(axis=(1, 2, 3)), by_group, rtol=2e-3)
    assert_same(made, proto)


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_a_flattened_channel_has_several_rows(flatten):
    factor = uneven(4)
    nodes = [
        ("Conv", "x w1", "c1", {}),
        ("Relu", "c1", "r1", {}),
        ("Flatten", "r1", "f", {}) if flatten == "Flatten" else ("Reshape", "r1 shape", "f", {}),
        ("MatMul", "f w2", "m", {}),
        ("Add", "m b2", "y", {}),
    ]
    weights = {
        "w1": normal(4, 3, 3, 3) * factor[:, None, None, None],
        "w2": normal(4 * 36, 5),
        "b2": normal(5),
        "shape": np.array([0, -1]),
    }
    proto = graph(nodes, weights)
    made = apply(proto)

    rows = np.abs(weight(made, "m")).reshape(4, 36 * 5).max(axis=1)
    np.testing.assert_allclose(np.abs(weight(made, "c1")).max(axis=(1, 2, 3)), rows, rtol=2e-3)
    assert_same(made, proto)


def test_a_batch_norm_is_folded_before_pairs_are_sought():
    nodes = [
        ("Conv", "x w1", "c1", {}),
        ("BatchNormalization", "c1 g s m v", "n1", {}),
        ("Relu", "n1", "r1", {}),
        ("Conv", "r1 w2", "y", {}),
    ]
    one = np.ones(4, np.float32)
    weights = {"w1": normal(4, 3, 1, 1), "w2": normal(2, 4, 1, 1), "g": uneven(4), "s": normal(4)}
    proto = graph(nodes, weights | {"m": normal(4), "v": one})
    made = apply(proto)

    ranges = np.abs(weight(made, "c1")).max(axis=(1, 2, 3))
    np.testing.assert_allclose(ranges, np.abs(weight(made, "y")).max(axis=(0, 2, 3)), rtol=2e-3)
    assert_same(made, proto)


def test_layers_that_share_weights_get_their_own():
    nodes = [
        ("MatMul", "x w", "a", {}),
        ("Relu", "a", "h", {}),
        ("MatMul", "h w", "b", {}),
        ("Sigmoid", "b", "y", {}),
    ]
    feeds = {"x": normal(5, 4)}
    proto = graph(nodes, {"w": normal(4, 4) * uneven(4)}, shape=("n", 4))

    np.testing.assert_allclose(answer(apply(proto), feeds), answer(proto, feeds), atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_any_two_layers_keep_their_answers(inputs, channels, outputs, seed):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(inputs, channels)) * np.exp(rng.normal(0, 3, channels))
    second = rng.normal(size=(channels, outputs)) * np.exp(rng.normal(0, 3, (channels, 1)))
    proto = two_layers(first, second, rng.normal(size=channels))
    feeds = {"x": rng.normal(size=(4, inputs)).astype(np.float32)}
    truth = answer(proto, feeds)

    np.testing.assert_allclose(answer(apply(proto), feeds), truth, atol=1e-5 * abs(truth).max())


@pytest.mark.parametrize(
    "method", [QuantizeWeights(granularity="tensor"), QuantizeStatic(per_channel=False)]
)
def test_uneven_rows_break_one_scale_per_layer_and_equalization_repairs_it(method):
    proto, data = inverted_residual(factor=2), Data({"calibration": Split(IMAGES)}, Task.NONE, "")
    broken, repaired = (
        method.apply(OnnxNetwork(onnx.ModelProto.FromString(p.SerializeToString())), data, Run())
        for p in (proto, apply(proto))
    )
    truth = answer(proto, IMAGES)

    assert sqnr(truth, answer(repaired.proto, IMAGES)) > 28
    assert (
        sqnr(truth, answer(broken.proto, IMAGES)) < sqnr(truth, answer(repaired.proto, IMAGES)) - 15
    )


def test_ranges_are_logged_before_and_after():
    run = Run()
    apply(two_layers([[1.0, 16.0]], [[4.0], [4.0]]), run)
    logged = dict(run.records)

    assert (logged["a"]["least_range_before"], logged["a"]["largest_range_before"]) == (1, 16)
    assert (logged["a"]["least_range_after"], logged["a"]["largest_range_after"]) == (2, 8)
    assert logged["y"]["largest_range_after"] == 8
    assert logged["equalization"]["pairs"] == 1


def test_what_begins_no_pair_is_logged_with_the_reason():
    run = Run()
    apply(inverted_residual(), run)

    assert ("y", {"operator": "Gemm", "left": "its result is an output"}) in run.records


def test_equalize_keeps_the_contract(tmp_path):
    path = tmp_path / "chain.onnx"
    onnx.save(inverted_residual(factor=2), path)
    data = ingot.make_data({"test": ingot.Split(IMAGES)}, task="none")

    check_method(Equalize(), ingot.load_model(path), data)
