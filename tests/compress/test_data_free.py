from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy import integrate, stats
from torch import nn

import ingot
from ingot.compress.data_free.data_free import DataFree
from ingot.compress.data_free.fit import covariance, first_scales, fit_rows, row_errors
from ingot.compress.data_free.flops import (
    LayerCost,
    generative_macs,
    layer_costs,
    layerwise_macs,
    moment_macs,
)
from ingot.compress.data_free.inputs import LayerInputs, norm_statistics
from ingot.compress.data_free.precondition import clipped_mean, clipped_normal, equalize_norms
from ingot.compress.data_free.ranges import activation_ranges, drawn_range
from ingot.compress.quantize.placement import linear_layers
from ingot.compress.quantize.prepare import fold_batch_norms, prepare
from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.models.onnx_format import read_onnx
from ingot.models.torch_format import export_module
from ingot.models.torch_graph import TorchGraph
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.testing.check_method import check_method

SIDE = 8
LIMITS = (-7, 7)


def two_convs(seed=0, *, activation="Relu", norms=True, width=8, groups=1):
    """conv - norm - activation - conv - norm - residual add - ReLU - mean - linear."""
    rng = np.random.default_rng(seed)
    weights, nodes = {}, []

    def conv(i, source, channels, group=1):
        weights[f"w{i}"] = rng.normal(0, (9 * channels) ** -0.5, (width, channels, 3, 3))
        options = {"pads": [1] * 4, "group": group}
        nodes.append(helper.make_node("Conv", [source, f"w{i}"], [f"c{i}"], **options))
        if not norms:
            return f"c{i}"
        parts = {"g": (0.4, 1.2), "b": (-0.4, 0.8), "m": (-0.3, 0.3), "v": (0.05, 1.5)}
        for part, (low, high) in parts.items():
            weights[f"{part}{i}"] = rng.uniform(low, high, width)
        names = [f"{part}{i}" for part in parts]
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *names], [f"n{i}"]))
        return f"n{i}"

    first = conv(1, "image", 3)
    extra = ["zero", "six"] if activation == "Clip" else []
    weights |= {"zero": np.array(0.0), "six": np.array(6.0)} if extra else {}
    nodes.append(helper.make_node(activation, [first, *extra], ["a1"]))
    second = conv(2, "a1", width // groups, groups)
    nodes.append(helper.make_node("Add", [second, "a1"], ["sum"]))
    nodes.append(helper.make_node("Relu", ["sum"], ["a2"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["a2"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    weights["head"], weights["offset"] = rng.normal(0, 0.4, (width, 5)), rng.normal(0, 1, 5)
    nodes.append(helper.make_node("Gemm", ["flat", "head", "offset"], ["logits"]))
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "net", [image], [logits], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return as_trained(proto) if norms else proto


def as_trained(proto):
    """Set the running statistics to those of images, as training would."""
    for i in (1, 2):
        with torch.no_grad():
            x = TorchGraph(proto).run({"image": images(256, seed=1)}, [f"c{i}"])[f"c{i}"]
        for name, value in ((f"m{i}", x.mean((0, 2, 3))), (f"v{i}", x.var((0, 2, 3)))):
            constant = next(w for w in proto.graph.initializer if w.name == name)
            constant.CopyFrom(numpy_helper.from_array(value.numpy(), name))
    return proto


def images(rows=32, seed=3):
    """Return normalized images whose neighbouring pixels are alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(rows, 3, SIDE // 2, SIDE // 2)).repeat(2, axis=2).repeat(2, axis=3)
    fine = rng.normal(size=(rows, 3, SIDE, SIDE))
    return (0.8 * coarse + 0.6 * fine).astype(np.float32)


def answer(proto, x):
    with torch.no_grad():
        return TorchGraph(proto).run({"image": x})["logits"].numpy()


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(two_convs(), path)
    return ingot.load_model(path, name="net")


@pytest.fixture
def test_only():
    return ingot.make_data({"test": ingot.Split({"image": images(4)})}, task="none")


def served(model, x, engine="onnxruntime"):
    session = open_session(model, EngineConfig(engine, threads=1))
    return session.run({"image": x})["logits"]


def lost(method, net, data):
    small = Recipe((method,)).apply(net, data)
    x = images(64, seed=9)
    return float(np.square(served(small, x) - served(net, x)).mean())


# --- inputs ---------------------------------------------------------------------------------


def test_statistics_are_shift_and_size_of_gain():
    graph = prepare(two_convs(), fold_norms=False)
    found = norm_statistics(graph)

    assert sorted(found) == ["n1", "n2"]
    np.testing.assert_allclose(found["n1"].mean, graph.value("b1"))
    np.testing.assert_allclose(found["n1"].std, np.abs(graph.value("g1")))


def folded():
    graph = prepare(two_convs(), fold_norms=False)
    statistics = norm_statistics(graph)
    fold_batch_norms(graph)
    return graph, statistics


def test_the_way_back_ends_at_every_norm_and_at_the_image():
    graph, statistics = folded()
    source = LayerInputs(graph, statistics)

    assert source.sources("a1") == ["n1"]
    assert source.sources("a2") == ["n1", "n2"]
    assert LayerInputs(graph, {}).sources("a2") == ["image"]


@pytest.mark.parametrize("coarse", [0.0, 0.8])
def test_drawn_norm_outputs_have_the_moments_of_the_norm(coarse):
    graph, statistics = folded()
    generator = torch.Generator().manual_seed(0)
    drawn = LayerInputs(graph, statistics, coarse=coarse).sample(["n1"], 4000, generator)["n1"]

    np.testing.assert_allclose(drawn.mean((0, 2, 3)), statistics["n1"].mean, atol=0.03)
    np.testing.assert_allclose(drawn.std((0, 2, 3)), statistics["n1"].std, rtol=0.03)
    corner = drawn[:, :, 0, 0].std(0)
    np.testing.assert_allclose(corner, statistics["n1"].std, rtol=0.06)


def test_a_coarse_share_makes_neighbours_alike():
    graph, statistics = folded()
    generator = torch.Generator().manual_seed(0)

    def alike(coarse):
        source = LayerInputs(graph, statistics, coarse=coarse)
        x = source.sample(["n1"], 500, generator)["n1"][:, 0]
        return float(np.corrcoef(x[:, :, 2].ravel(), x[:, :, 3].ravel())[0, 1])

    assert abs(alike(0.0)) < 0.05
    assert alike(0.8) > 0.5


def test_an_input_of_unknown_size_is_refused():
    proto = two_convs()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    with pytest.raises(RecipeError, match="of known size.*Export the model with a fixed height"):
        LayerInputs(prepare(proto), {})


# --- preconditioning ------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["Relu", "Clip", "HardSwish"])
def test_equalizing_channels_changes_no_answer(activation):
    proto = two_convs(activation=activation)
    rng = np.random.default_rng(5)
    stressed = prepare(proto, fold_norms=False)
    stress(stressed, rng)
    x = images()
    truth = answer(stressed.proto, x)
    equalize_norms(stressed)

    after = answer(stressed.proto, x)
    assert np.abs(after - truth).max() <= 1e-4
    np.testing.assert_array_equal(after.argmax(1), truth.argmax(1))


def stress(graph, rng):
    """Multiply conv channels by log-uniform [0.05, 20] and let the norms take it up."""
    for i in (1, 2):
        factor = np.exp(rng.uniform(np.log(0.05), np.log(20), 8))
        weight = graph.value(f"w{i}") * factor.reshape(-1, 1, 1, 1)
        graph.add_weight(f"w{i}", weight.astype(np.float32))
        graph.add_weight(f"m{i}", (graph.value(f"m{i}") * factor).astype(np.float32))
        var = (graph.value(f"v{i}") + 1e-5) * factor**2 - 1e-5
        graph.add_weight(f"v{i}", var.astype(np.float32))


def test_equalized_channels_have_one_range():
    graph = prepare(two_convs(), fold_norms=False)
    stress(graph, np.random.default_rng(1))
    equalize_norms(graph)

    for conv in (n for n in graph.nodes if n.op_type == "Conv"):
        peak = np.abs(graph.value(conv.input[1])).max(axis=(1, 2, 3))
        np.testing.assert_allclose(peak, peak[0], rtol=1e-5)


def test_a_variance_that_would_be_negative_is_made_up_by_the_gain():
    graph = prepare(two_convs(), fold_norms=False)
    graph.add_weight("v1", np.full(8, 1e-8, np.float32))
    weight = graph.value("w1") * np.geomspace(0.01, 100, 8).reshape(-1, 1, 1, 1)
    graph.add_weight("w1", weight.astype(np.float32))
    x = images()
    truth = answer(graph.proto, x)
    equalize_norms(graph)

    norm = next(n for n in graph.nodes if n.op_type == "BatchNormalization")
    assert (graph.value(norm.input[4]) >= 0).all()
    np.testing.assert_allclose(answer(graph.proto, x), truth, rtol=1e-3, atol=1e-4)


def test_dead_channels_survive_equalization():
    graph = prepare(two_convs(), fold_norms=False)
    weight = graph.value("w1").copy()
    weight[2] = 0
    graph.add_weight("w1", weight)
    x = images()
    truth = answer(graph.proto, x)
    equalize_norms(graph)

    np.testing.assert_allclose(answer(graph.proto, x), truth, atol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-np.inf, 1.0), (-1.0, 0.5)])
@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.7), (-2.0, 0.5), (4.0, 3.0)])
def test_the_clipped_normal_agrees_with_numeric_integration(mean, std, low, high):
    def moment(power):
        def integrand(x):
            return np.clip(x, low, high) ** power * stats.norm.pdf(x, mean, std)

        points = [p for p in (low, high) if np.isfinite(p)]
        ends = (mean - 12 * std, mean + 12 * std)
        return integrate.quad(integrand, *ends, points=points, limit=200)[0]

    first, variance = clipped_normal(np.array(mean), np.array(std), low, high)
    assert first == pytest.approx(moment(1), abs=1e-7)
    assert variance == pytest.approx(moment(2) - moment(1) ** 2, abs=1e-7)


def test_a_normal_without_spread_is_its_clipped_mean():
    first, variance = clipped_normal(np.array([-1.0, 0.0, 2.0]), np.zeros(3))

    np.testing.assert_allclose(first, [0, 0, 2], atol=1e-9)
    np.testing.assert_allclose(variance, 0, atol=1e-9)


def test_the_mean_behind_a_relu_is_known_and_that_of_a_sum_is_not():
    graph, statistics = folded()
    found = clipped_mean(graph, statistics, "a1")

    normal = statistics["n1"]
    expected = [
        m * stats.norm.cdf(m / s) + s * stats.norm.pdf(m / s)
        for m, s in zip(normal.mean, normal.std, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert clipped_mean(graph, statistics, "a2") is None


# --- ranges ---------------------------------------------------------------------------------


def test_ranges_reach_six_deviations_and_stop_at_the_activation():
    graph, statistics = folded()
    source, generator = LayerInputs(graph, statistics), torch.Generator().manual_seed(0)
    found = activation_ranges(source, ["n1", "a1", "a2"], 6.0, rows=64, generator=generator)

    low = (statistics["n1"].mean - 6 * statistics["n1"].std).min()
    high = (statistics["n1"].mean + 6 * statistics["n1"].std).max()
    assert found["n1"] == pytest.approx((low, high))
    assert found["a1"] == pytest.approx((0, high))
    assert found["a2"][0] == 0
    assert found["a2"][1] > 0


def test_the_range_behind_a_relu_is_the_clipped_range_of_what_enters():
    graph, statistics = folded()
    source = LayerInputs(graph, statistics)

    def found(name):
        generator = torch.Generator().manual_seed(0)
        return activation_ranges(source, [name], 6.0, rows=64, generator=generator)[name]

    assert found("sum")[0] < 0
    assert found("a2") == (0, found("sum")[1])


def test_images_are_taken_to_be_normalized():
    graph, statistics = folded()
    generator = torch.Generator().manual_seed(0)
    source = LayerInputs(graph, statistics)

    for deviations, reach in ((6.0, 4.0), (3.0, 3.0)):
        found = activation_ranges(source, ["image"], deviations, rows=1, generator=generator)
        assert found == {"image": (-reach, reach)}


def test_drawn_ranges_stop_where_values_pile_up():
    x = np.random.default_rng(0).normal(5, 1, (500, 1, 4)).clip(0, 5)

    low, high = drawn_range(x, 6.0)
    assert high == 5
    assert low == pytest.approx(float(x.mean() - 6 * x.std()))


# --- one layer ------------------------------------------------------------------------------


def problem(seed=0, outputs=6, inputs=12):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(inputs, inputs))
    weight = rng.normal(size=(1, outputs, inputs))
    mean = rng.normal(size=(1, inputs))
    hessian = (mix @ mix.T)[None] + mean[:, :, None] * mean[:, None, :]
    return weight, covariance(hessian, mean), mix @ mix.T


def test_covariance_takes_the_mean_out():
    _, cov, expected = problem()

    np.testing.assert_allclose(cov[0], expected, rtol=1e-5, atol=1e-3)


def test_training_beats_rounding_and_keeps_the_variance_of_outputs():
    weight, cov, _ = problem()
    scale = first_scales(weight, np.ones((1, 6)), cov, LIMITS, "row")
    fit = fit_rows(weight, scale, cov, limits=LIMITS, steps=100, rate=0.02)

    assert fit.trained < 0.6 * fit.rounded
    assert np.abs(fit.integers).max() <= 7
    np.testing.assert_array_equal(fit.integers, np.rint(fit.integers))
    zeros = np.zeros_like(weight)
    np.testing.assert_allclose(
        row_errors(fit.integers * fit.scale, zeros, cov), row_errors(weight, zeros, cov), rtol=1e-6
    )


def test_no_steps_round_to_the_nearest():
    weight, cov, _ = problem()
    scale = np.abs(weight).max(axis=2, keepdims=True) / 7
    fit = fit_rows(weight, scale, cov, limits=LIMITS, steps=0, rate=0.02)

    np.testing.assert_array_equal(fit.integers, np.rint(weight / scale))
    assert fit.trained == fit.rounded


def test_dead_rows_get_a_scale_and_no_error():
    weight, cov, _ = problem()
    weight[0, 2] = 0
    scale = first_scales(weight, np.ones((1, 6)), cov, LIMITS, "row")
    fit = fit_rows(weight, scale, cov, limits=LIMITS, steps=10, rate=0.02)

    assert (fit.scale > 0).all()
    np.testing.assert_array_equal(fit.integers[0, 2], 0)


def test_one_scale_per_tensor_follows_the_norms_factor():
    weight, cov, _ = problem()
    factor = np.geomspace(0.1, 10, 6)[None]
    scale = first_scales(weight * factor[..., None], factor, cov, LIMITS, "tensor")

    np.testing.assert_allclose(scale[0, :, 0] / factor[0], scale[0, 0, 0] / factor[0, 0])


# --- cost -----------------------------------------------------------------------------------


def test_costs_are_counted_by_hand():
    graph, statistics = folded()
    costs = layer_costs(graph, linear_layers(graph), LayerInputs(graph, statistics).shapes)

    assert [c.macs for c in costs.values()] == [8 * 27 * 64, 8 * 72 * 64, 8 * 5]
    assert layerwise_macs([10, 20], steps=3, batch=4) == 3 * 4 * 4 * 30
    assert generative_macs([10, 20], steps=3, batch=4, generator=5) == 3 * 4 * (120 + 15)


def test_training_on_moments_is_counted_by_hand():
    cost = LayerCost(groups=2, outputs=3, inputs=4, positions=10)

    # per group: 2 batches of 80 patches x 4^2, 6 products of 3 x 4^2, GPTQ 4^3 + 3 x 4^2
    assert moment_macs([cost], steps=5, rows=16, at_once=8) == 2 * (2560 + 288 + 112)


def test_the_ratio_is_logged_with_both_step_counts(net, test_only):
    run = Run()
    Recipe((DataFree(steps=7, rows=16),)).apply(net, test_only, run=run)

    facts = dict(run.records)["cost"]
    assert facts["steps_layerwise"] == 7
    assert facts["steps_generative"] == 80_000
    assert facts["macs_generative"] == 80_000 * 16 * 4 * (8 * 27 * 64 + 8 * 72 * 64 + 40)
    assert facts["ratio"] == pytest.approx(facts["macs_generative"] / facts["macs_layerwise"])


# --- the method -----------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["bn", "network"])
def test_data_free_compression_keeps_the_contract(net, test_only, inputs):
    check_method(DataFree(steps=3, rows=16, inputs=inputs), net, test_only)


def test_no_split_is_declared():
    assert DataFree.needs == frozenset()


def test_eight_bits_answer_as_floats_do(net, test_only):
    x = images(64, seed=9)
    spread = float(np.var(served(net, x)))

    assert lost(DataFree(rows=64), net, test_only) < 0.02 * spread


@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_four_bits_answer_better_than_rounded_ones(net, test_only, granularity):
    trained = DataFree(bits=4, granularity=granularity)
    rounded = DataFree(bits=4, granularity=granularity, steps=0, bias_correction=False)

    assert lost(trained, net, test_only) < 0.6 * lost(rounded, net, test_only)


@pytest.mark.parametrize("groups", [2, 8])
def test_groups_of_a_convolution_are_trained_each_on_its_own_inputs(tmp_path, test_only, groups):
    onnx.save(two_convs(groups=groups), tmp_path / "grouped.onnx")
    model = ingot.load_model(tmp_path / "grouped.onnx", name="grouped")
    rounded = lost(DataFree(bits=4, steps=0, bias_correction=False), model, test_only)

    assert lost(DataFree(bits=4), model, test_only) < 0.6 * rounded


def test_clips_at_zero_are_bounds_like_any_other():
    proto = two_convs(activation="Clip")
    graph = prepare(proto, fold_norms=False)
    graph.add_weight("zero", np.array(-1.0, np.float32))
    graph.add_weight("six", np.array(0.0, np.float32))
    statistics = norm_statistics(graph)

    assert (clipped_mean(graph, statistics, "a1") < 0).all()


def test_preconditioning_heals_channels_of_very_different_range(tmp_path, test_only):
    graph = prepare(two_convs(), fold_norms=False)
    stress(graph, np.random.default_rng(1))
    onnx.save(graph.proto, tmp_path / "stressed.onnx")
    model = ingot.load_model(tmp_path / "stressed.onnx", name="stressed")
    plain = {"granularity": "tensor", "steps": 0, "bias_correction": False}

    naive = lost(DataFree(precondition=False, **plain), model, test_only)
    assert lost(DataFree(precondition=True, **plain), model, test_only) < 0.1 * naive


def test_integers_run_on_both_engines(net, test_only):
    pytest.importorskip("openvino")
    small = Recipe((DataFree(bits=5, rows=32),)).apply(net, test_only)
    x = images(16, seed=9)

    one, other = served(small, x), served(small, x, "openvino")
    np.testing.assert_allclose(one, other, atol=0.02 * np.abs(one).max())
    weights = {w.name: w for w in read_onnx(small.onnx_path).graph.initializer}
    stored = [numpy_helper.to_array(w) for w in weights.values() if w.name.endswith("_quantized")]
    assert max(np.abs(w.astype(int)).max() for w in stored if w.dtype == np.int8) == 15


def test_activations_may_stay_in_float(net, test_only):
    small = Recipe((DataFree(activation_bits=0, steps=3, rows=16),)).apply(net, test_only)

    kinds = Counter(n.op_type for n in read_onnx(small.onnx_path).graph.node)
    assert kinds["QuantizeLinear"] == 0
    assert kinds["DequantizeLinear"] >= 3


def test_a_network_without_norms_is_refused_in_words(tmp_path, test_only):
    onnx.save(two_convs(norms=False), tmp_path / "bare.onnx")
    bare = ingot.load_model(tmp_path / "bare.onnx", name="bare")

    with pytest.raises(RecipeError, match="no BatchNormalization statistics found"):
        Recipe((DataFree(),)).apply(bare, test_only)


def test_a_network_without_norms_may_be_drawn_through(tmp_path, test_only):
    onnx.save(two_convs(norms=False), tmp_path / "bare.onnx")
    bare = ingot.load_model(tmp_path / "bare.onnx", name="bare")
    trained = DataFree(bits=4, inputs="network")
    rounded = DataFree(bits=4, inputs="network", steps=0, bias_correction=False)

    assert lost(trained, bare, test_only) < lost(rounded, bare, test_only)


def test_draws_are_held_against_what_norms_remember(net, test_only):
    run = Run()
    Recipe((DataFree(steps=1, rows=16),)).apply(net, test_only, run=run)

    facts = [f for _, f in run.records if "std_ratio" in f]
    assert len(facts) == 2
    assert all(f["std_ratio"] > 0 for f in facts)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("bits", 3, "bits must be 4 to 8; got 3"),
        ("bits", 9, "bits must be 4 to 8; got 9"),
        ("activation_bits", 4, "activation_bits must be 8 or 0; got 4"),
        ("granularity", "k:32", "granularity must be 'row' or 'tensor'"),
        ("inputs", "noise", "inputs must be one of bn, normal, network; got 'noise'"),
        ("coarse", 1.0, "coarse must be at least 0 and below 1"),
        ("steps", -1, "steps must be 0 or more"),
        ("rows", 0, "rows must be positive; got 0"),
    ],
)
def test_settings_are_checked_at_once(setting, value, words):
    with pytest.raises(RecipeError, match=words):
        DataFree(**{setting: value})


def test_batch_norms_survive_the_export():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    proto = export_module(module, {"image": np.zeros((2, 3, 8, 8), np.float32)})

    norm = next(n for n in proto.graph.node if n.op_type == "BatchNormalization")
    assert norm.domain == ""
    assert [i.domain for i in proto.opset_import] == [""]
