from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_answers import answer, sqnr
from onnx import TensorProto, helper, numpy_helper

from ingot.compress.quantize.dynamic import QuantizeDynamic
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.run import Run
from ingot.core.errors import DataError, RecipeError
from ingot.data.data import Data, Split, Task
from ingot.models.network import OnnxNetwork
from ingot.testing.tiny import tiny_cnn, tiny_transformer, toy_images, toy_tokens

IMAGES = {"image": toy_images(64)[0]}
TOKENS = toy_tokens(32)


def data(inputs):
    return Data({"calibration": Split(inputs)}, Task.NONE, "digest")


def apply(method, proto, inputs, run=None):
    result = method.apply(OnnxNetwork(proto), data(inputs), run or Run()).proto
    onnx.checker.check_model(result, full_check=True)
    return result


def executed_by_onnxruntime(proto, path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return Counter(n.op_type for n in onnx.load(path).graph.node)


def executed_by_openvino(proto):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    rows = [n.get_rt_info() for n in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [(r["layerType"].astype(str), r["runtimePrecision"].astype(str)) for r in rows]
    return compiled, Counter(kinds)


def test_every_layer_of_a_cnn_runs_as_integers_in_onnxruntime(tmp_path):
    ran = executed_by_onnxruntime(apply(QuantizeStatic(), tiny_cnn(), IMAGES), tmp_path / "o.onnx")

    assert (ran["QLinearConv"], ran["QGemm"], ran["QLinearAdd"]) == (2, 1, 1)
    assert ran["QLinearGlobalAveragePool"] == 1
    assert not ran.keys() & {"Conv", "Gemm", "MatMul", "Add", "Relu"}


def test_every_layer_of_a_cnn_runs_as_integers_in_openvino():
    _, ran = executed_by_openvino(apply(QuantizeStatic(), tiny_cnn(), IMAGES))

    assert ran["Convolution", "u8"] == 2
    assert ran["FullyConnected", "u8"] == 1
    assert ran["Convolution", "f32"] == ran["FullyConnected", "f32"] == 0


@pytest.mark.parametrize("settings", [{}, {"smooth": 0.5}, {"attention": True}])
def test_every_linear_layer_of_an_encoder_runs_as_integers_on_both_engines(settings, tmp_path):
    made = apply(QuantizeStatic(**settings), tiny_transformer(), TOKENS)
    onnxruntime_ran = executed_by_onnxruntime(made, tmp_path / "o.onnx")
    _, openvino_ran = executed_by_openvino(made)

    attention = 1 if "attention" in settings else 0
    assert onnxruntime_ran["MatMulIntegerToFloat"] == 6 + attention
    assert openvino_ran["FullyConnected", "u8"] == 6
    assert openvino_ran["FullyConnected", "f32"] == 0


@pytest.mark.parametrize(
    ("proto", "feeds"), [(tiny_cnn, IMAGES), (tiny_transformer, TOKENS)], ids=["cnn", "encoder"]
)
def test_both_engines_give_nearly_the_same_answers(proto, feeds):
    made = apply(QuantizeStatic(), proto(), feeds)
    compiled, _ = executed_by_openvino(made)

    assert sqnr(answer(made, feeds), compiled(feeds)[0]) > 35


@pytest.mark.parametrize(
    "observer", ["min-max", "moving-average", "histogram", "mse", "percentile"]
)
@pytest.mark.parametrize(
    ("proto", "feeds"), [(tiny_cnn, IMAGES), (tiny_transformer, TOKENS)], ids=["cnn", "encoder"]
)
def test_static_answers_stay_close_with_every_observer(observer, proto, feeds):
    made = apply(QuantizeStatic(observer=observer), proto(), feeds)

    assert sqnr(answer(proto(), feeds), answer(made, feeds)) > 30


def test_entropy_answers_stay_usable():
    made = apply(QuantizeStatic(observer="entropy"), tiny_cnn(), IMAGES)

    assert sqnr(answer(tiny_cnn(), IMAGES), answer(made, IMAGES)) > 15


def test_masks_softmax_and_norms_stay_in_float():
    made = apply(QuantizeStatic(), tiny_transformer(), TOKENS)
    quantized = {n.input[0] for n in made.graph.node if n.op_type == "QuantizeLinear"}

    assert quantized == {"x", "c", "h", "gelu"}


def test_attention_adds_the_queries_and_keys_on_signed_grids():
    made = apply(QuantizeStatic(attention=True), tiny_transformer(), TOKENS)
    zeros = {
        n.input[0]: next(w for w in made.graph.initializer if w.name == n.input[2])
        for n in made.graph.node
        if n.op_type == "QuantizeLinear"
    }

    assert zeros.keys() == {"x", "q", "kt", "c", "h", "gelu"}
    assert {n for n, z in zeros.items() if z.data_type == TensorProto.INT8} == {"q", "kt"}


def test_padded_positions_do_not_matter_after_quantization():
    made = apply(QuantizeStatic(), tiny_transformer(), TOKENS)
    row = {n: a[:1, : TOKENS["attention_mask"][0].sum()] for n, a in TOKENS.items()}
    padded = {n: np.pad(a, ((0, 0), (0, 5))) for n, a in row.items()}

    np.testing.assert_allclose(answer(made, row), answer(made, padded), atol=2e-2)


@pytest.mark.parametrize("method", [QuantizeStatic(), QuantizeDynamic(), QuantizeWeights()])
def test_all_forms_store_weights_and_tables_as_int8(method):
    made = apply(method, tiny_transformer(), TOKENS)
    floats = [w for w in made.graph.initializer if w.data_type == TensorProto.FLOAT]

    assert max(np.prod(w.dims) for w in floats) <= 64
    assert sqnr(answer(tiny_transformer(), TOKENS), answer(made, TOKENS)) > 30


def test_dynamic_layers_are_fused_to_integer_kernels(tmp_path):
    made = apply(QuantizeDynamic(), tiny_transformer(), TOKENS)
    ran = executed_by_onnxruntime(made, tmp_path / "o.onnx")

    assert ran["DynamicQuantizeMatMul"] + ran["MatMulIntegerToFloat"] == 6
    assert ran["MatMulInteger"] == 0


def test_dynamic_handles_gemm_with_bias_and_leaves_convolutions():
    made = apply(QuantizeDynamic(), tiny_cnn(), IMAGES)
    kinds = Counter(n.op_type for n in made.graph.node)

    assert (kinds["Conv"], kinds["Gemm"], kinds["MatMulInteger"]) == (2, 0, 1)
    assert sqnr(answer(tiny_cnn(), IMAGES), answer(made, IMAGES)) > 35


def test_dynamic_names_the_only_engine_that_runs_it():
    assert QuantizeDynamic().engines == {"onnxruntime"}


def test_per_tensor_weights_have_one_scale():
    made = apply(QuantizeStatic(per_channel=False), tiny_cnn(), IMAGES)
    scales = [w for w in made.graph.initializer if w.name.endswith("_scale")]

    assert all(not w.dims for w in scales)
    assert sqnr(answer(tiny_cnn(), IMAGES), answer(made, IMAGES)) > 30


def test_skipped_layers_and_tables_stay_in_float():
    skip = ("MatMul_up_mm", "table")
    made = apply(QuantizeStatic(skip=skip), tiny_transformer(), TOKENS)
    layer = next(n for n in made.graph.node if n.name == "MatMul_up_mm")

    assert list(layer.input) == ["h", "w_u"]
    assert "table" in {w.name for w in made.graph.initializer}


def test_operators_limit_what_is_quantized():
    made = apply(QuantizeStatic(operators=("Gemm",)), tiny_cnn(), IMAGES)
    quantized = {n.input[0] for n in made.graph.node if n.op_type == "QuantizeLinear"}

    assert quantized == {"f"}


def test_smoothing_alone_does_not_change_answers():
    from ingot.compress.quantize.placement import place
    from ingot.compress.quantize.prepare import prepare
    from ingot.compress.quantize.smooth import smooth_inputs

    graph = prepare(tiny_transformer())
    smooth_inputs(graph, place(graph), Split(TOKENS), strength=0.5)
    onnx.checker.check_model(graph.proto, full_check=True)

    np.testing.assert_allclose(
        answer(graph.proto, TOKENS), answer(tiny_transformer(), TOKENS), atol=1e-5
    )


def outlier_linear(norm=False):
    """x (batch, 8) with one channel a hundred times larger, through a linear layer."""
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    weights = {"w": weight, "one": np.ones(8, np.float32), "nil": np.zeros(8, np.float32)}
    weights["one"][3] = 100 if norm else 1
    source = "n" if norm else "x"
    nodes = [helper.make_node("MatMul", [source, "w"], ["y"], name="layer")]
    if norm:
        nodes.insert(
            0, helper.make_node("LayerNormalization", ["x", "one", "nil"], ["n"], name="norm")
        )
    else:
        del weights["one"], weights["nil"]
    graph = helper.make_graph(
        nodes,
        "outlier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    x = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)
    x[:, 3] *= 1 if norm else 100
    return proto, {"x": x}


def test_smoothing_saves_the_small_channels_beside_an_outlier():
    proto, feeds = outlier_linear()
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            numpy_helper.to_array(proto.graph.initializer[0])
            * np.float32([[1]] * 3 + [[0.01]] + [[1]] * 4),
            "w",
        )
    )
    before = answer(proto, feeds)
    plain, smooth = (
        apply(QuantizeStatic(observer="min-max", smooth=s), outlier(proto), feeds)
        for s in (None, 0.5)
    )

    assert sqnr(before, answer(smooth, feeds)) > sqnr(before, answer(plain, feeds)) + 10


def outlier(proto):
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    return twin


def test_smoothing_goes_into_a_layer_norm_that_nobody_else_reads():
    proto, feeds = outlier_linear(norm=True)
    before = answer(proto, feeds)
    made = apply(QuantizeStatic(smooth=0.5), proto, feeds)

    assert "Mul" not in {n.op_type for n in made.graph.node}
    assert sqnr(before, answer(made, feeds)) > 30


def test_what_was_done_is_logged_per_layer():
    run = Run()
    apply(QuantizeStatic(), tiny_cnn(), IMAGES, run)
    logged = dict(run.records)

    assert list(logged) == ["Conv_c1", "Conv_c2", "Gemm_logits"]
    assert all(facts["weight_sqnr_db"] > 35 and facts["scale"] > 0 for facts in logged.values())


def test_dead_channels_survive():
    proto = tiny_cnn()
    weight = next(w for w in proto.graph.initializer if w.name == "w2")
    value = numpy_helper.to_array(weight).copy()
    value[3] = 0
    weight.CopyFrom(numpy_helper.from_array(value, "w2"))
    before = answer(proto, IMAGES)

    assert sqnr(before, answer(apply(QuantizeStatic(), proto, IMAGES), IMAGES)) > 30


def test_constant_inputs_survive():
    feeds = {"image": np.zeros((4, 1, 8, 8), np.float32)}
    made = apply(QuantizeStatic(), tiny_cnn(), feeds)

    assert np.isfinite(answer(made, feeds)).all()


def test_a_large_bias_on_a_tiny_grid_does_not_overflow():
    proto = tiny_cnn()
    for name, factor in (("w2", 1e-7), ("b2", 1e3)):
        weight = next(w for w in proto.graph.initializer if w.name == name)
        value = numpy_helper.to_array(weight) * np.float32(factor)
        weight.CopyFrom(numpy_helper.from_array(value, name))
    before = answer(proto, IMAGES)

    assert sqnr(before, answer(apply(QuantizeStatic(), proto, IMAGES), IMAGES)) > 25


@pytest.mark.parametrize("method", [QuantizeStatic(), QuantizeDynamic(), QuantizeWeights()])
def test_a_quantized_model_is_not_quantized_again(method):
    made = apply(QuantizeWeights(), tiny_cnn(), IMAGES)

    with pytest.raises(RecipeError, match="must be float before"):
        apply(method, made, IMAGES)


@pytest.mark.parametrize("kind", [QuantizeStatic, QuantizeDynamic, QuantizeWeights])
def test_a_misspelt_name_to_skip_gets_the_nearest(kind):
    with pytest.raises(RecipeError, match="Did you mean 'Gemm_logits'"):
        apply(kind(skip=("Gemm_logit",)), tiny_cnn(), IMAGES)


@pytest.mark.parametrize("kind", [QuantizeStatic, QuantizeDynamic, QuantizeWeights])
def test_a_model_with_nothing_to_quantize_is_refused(kind):
    with pytest.raises(RecipeError, match="must hold a layer that can be quantized"):
        apply(kind(skip=("Conv_c1", "Conv_c2", "Gemm_logits")), tiny_cnn(), IMAGES)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (QuantizeStatic, {"observer": "minmax"}, "Did you mean 'min-max'"),
        (QuantizeStatic, {"operators": ("Convolution",)}, "operators must name"),
        (QuantizeStatic, {"operators": ()}, "got 'none'"),
        (QuantizeStatic, {"smooth": 1.5}, "between 0 and 1"),
        (QuantizeDynamic, {"operators": ("Conv",)}, "operators must name"),
        (QuantizeWeights, {"operators": ("Add",)}, "operators must name"),
    ],
)
def test_settings_are_checked_before_any_work(kind, settings, message):
    with pytest.raises(RecipeError, match=message):
        kind(**settings)


def test_static_needs_calibration_rows():
    nothing = Data({}, Task.NONE, "digest")

    with pytest.raises(DataError, match="'calibration'"):
        QuantizeStatic().apply(OnnxNetwork(tiny_cnn()), nothing, Run())


def test_weights_that_are_not_finite_are_refused():
    proto = tiny_cnn()
    weight = next(w for w in proto.graph.initializer if w.name == "w3")
    weight.CopyFrom(numpy_helper.from_array(np.full((8, 4), np.nan, np.float32), "w3"))

    with pytest.raises(RecipeError, match="finite"):
        apply(QuantizeWeights(), proto, IMAGES)


def test_the_same_settings_give_the_same_bytes():
    first, second = (apply(QuantizeStatic(), tiny_cnn(), IMAGES) for _ in range(2))

    assert first.SerializeToString() == second.SerializeToString()


def chain(nodes, weights, size):
    """A CNN with input x and output y that ends in whatever the nodes make."""
    graph = helper.make_graph(
        [helper.make_node(op, i, [o], name=f"{op}_{o}", **a) for op, i, o, a in nodes],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    return onnx.shape_inference.infer_shapes(proto)


def kernel(out, inner, size=1, seed=0):
    weight = np.random.default_rng(seed).normal(size=(out, inner, size, size))
    return weight.astype(np.float32) / np.float32(np.sqrt(inner * size * size))


CHAIN = {"x": np.random.default_rng(9).normal(size=(16, 3, 8, 8)).astype(np.float32)}


def test_a_shortcut_that_slices_and_pads_stays_integer(tmp_path):
    nodes = [
        ("Conv", ["x", "w0"], "c0", {}),
        ("Relu", ["c0"], "a0", {}),
        ("Conv", ["a0", "w1"], "c1", {"strides": [2, 2]}),
        ("Slice", ["a0", "zero", "eight", "two", "step"], "half", {}),
        ("Pad", ["half", "pads"], "wide", {}),
        ("Add", ["c1", "wide"], "sum", {}),
        ("Relu", ["sum"], "a1", {}),
        ("Conv", ["a1", "w2"], "y", {}),
    ]
    weights = {"w0": kernel(4, 3), "w1": kernel(8, 4), "w2": kernel(2, 8)}
    weights |= {
        "zero": np.array([0, 0]),
        "eight": np.array([8, 8]),
        "two": np.array([2, 3]),
        "step": np.array([2, 2]),
        "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
    }
    proto = chain(nodes, weights, (3, 8, 8))
    before = answer(proto, CHAIN)
    made = apply(QuantizeStatic(), proto, CHAIN)
    ran = executed_by_onnxruntime(made, tmp_path / "o.onnx")
    compiled, openvino_ran = executed_by_openvino(made)

    assert (ran["QLinearConv"], ran["QLinearAdd"], ran["Conv"], ran["Add"]) == (3, 1, 0, 0)
    assert openvino_ran["Convolution", "u8"] == 3
    assert sqnr(before, answer(made, CHAIN)) > 25
    assert sqnr(before, compiled(CHAIN)[0]) > 25


def test_pooling_and_concatenation_stay_integer(tmp_path):
    nodes = [
        ("Conv", ["x", "w0"], "c0", {}),
        ("Relu", ["c0"], "a0", {}),
        ("MaxPool", ["a0"], "p0", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["p0", "w1"], "left", {}),
        ("Conv", ["p0", "w2"], "right", {}),
        ("Concat", ["left", "right"], "both", {"axis": 1}),
        ("AveragePool", ["both"], "p1", {"kernel_shape": [2, 2]}),
        ("Conv", ["p1", "w3"], "y", {}),
    ]
    weights = {
        "w0": kernel(4, 3),
        "w1": kernel(4, 4),
        "w2": kernel(4, 4, seed=1),
        "w3": kernel(2, 8),
    }
    proto = chain(nodes, weights, (3, 8, 8))
    before = answer(proto, CHAIN)
    made = apply(QuantizeStatic(), proto, CHAIN)
    ran = executed_by_onnxruntime(made, tmp_path / "o.onnx")

    assert (ran["QLinearConv"], ran["Conv"]) == (4, 0)
    assert ran["QLinearAveragePool"] == 1
    assert ran["MaxPool"] + ran["NhwcMaxPool"] == 1
    assert sqnr(before, answer(made, CHAIN)) > 25


def test_a_convolution_before_a_float_activation_still_runs_as_integers(tmp_path):
    nodes = [
        ("Conv", ["x", "w0"], "c0", {}),
        ("Sigmoid", ["c0"], "gate", {}),
        ("Mul", ["c0", "gate"], "a0", {}),
        ("Conv", ["a0", "w1"], "y", {}),
    ]
    proto = chain(nodes, {"w0": kernel(4, 3), "w1": kernel(4, 4)}, (3, 8, 8))
    before = answer(proto, CHAIN)
    made = apply(QuantizeStatic(), proto, CHAIN)
    ran = executed_by_onnxruntime(made, tmp_path / "o.onnx")

    assert (ran["QLinearConv"], ran["Conv"]) == (2, 0)
    assert sqnr(before, answer(made, CHAIN)) > 25
    assert [o.name for o in made.graph.output] == ["y"]
