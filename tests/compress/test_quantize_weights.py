import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

import ingot
from ingot.compress.quantize.groups import (
    Granularity,
    group_scales,
    limits_of,
    pack_int4,
    pack_rows,
    round_groups,
)
from ingot.compress.quantize.qparams import sqnr_db
from ingot.compress.quantize.rounding import output_error, round_rows
from ingot.compress.quantize.weights import QuantizeGroups, QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.models.onnx_format import read_onnx
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.testing.check_method import check_method
from ingot.testing.tiny import tiny_transformer, toy_tokens

ENGINES = ("onnxruntime", "openvino")


@pytest.fixture
def wide(tmp_path):
    path = tmp_path / "wide.onnx"
    onnx.save(tiny_transformer(width=64, vocab=200), path)
    return ingot.load_model(path, name="wide")


@pytest.fixture
def texts():
    return ingot.make_data({"calibration": ingot.Split(toy_tokens(32, vocab=200))}, task="none")


def _answer(model, engine="onnxruntime"):
    session = open_session(model, EngineConfig(engine, threads=1))
    return session.run(toy_tokens(16, seed=5, vocab=200))["embedding"]


@pytest.mark.parametrize("text", ["tensor", "row", "rows:16", "k:32"])
def test_a_granularity_is_read_from_its_name(text):
    found = Granularity.parse(text)

    assert text in (found.kind, f"{found.kind}:{found.size}")


@pytest.mark.parametrize("text", ["rows", "k:0", "k:-2", "column", "row:2", ""])
def test_an_unknown_granularity_is_refused_with_the_valid_ones(text):
    with pytest.raises(RecipeError, match="'tensor', 'row', 'rows:N' or 'k:N'"):
        Granularity.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("tensor", [[7, 7], [7, 7]]), ("row", [[2, 2], [7, 7]]), ("k:1", [[1, 2], [7, 3]])],
)
def test_the_largest_magnitude_of_a_group_sets_its_scale(text, expected):
    weight = np.array([[1.0, -2.0], [7.0, 3.0]])

    scales = group_scales(weight, 8, Granularity.parse(text))

    np.testing.assert_allclose(scales * 127, expected)


def test_rows_that_are_joined_share_a_scale():
    weight = np.arange(1.0, 9.0).reshape(4, 2)

    scales = group_scales(weight, 8, Granularity.parse("rows:2"))

    np.testing.assert_allclose(scales[:, 0] * 127, [4, 4, 8, 8])


def test_a_size_that_does_not_divide_the_layer_is_refused():
    with pytest.raises(RecipeError, match="k:3 must divide the layer; got 2 rows of 4 inputs"):
        group_scales(np.ones((2, 4)), 4, Granularity.parse("k:3"))


def test_a_dead_group_gets_a_scale_of_one():
    np.testing.assert_allclose(group_scales(np.zeros((1, 4)), 8, Granularity.parse("row")), 1.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_finer_groups_lose_less_on_rows_of_unequal_size(seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(32, 64)) * np.exp(rng.normal(size=(32, 1)) * 2)

    def db(text):
        scale = group_scales(weight, 4, Granularity.parse(text))
        return sqnr_db(weight, round_groups(weight, scale, 4, hessian=None, how="nearest") * scale)

    assert db("k:16") > db("row") > db("tensor")
    assert db("row") >= db("rows:16")


def test_clipping_is_chosen_only_where_it_helps():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 256))
    clipped = group_scales(weight, 4, Granularity.parse("row"))
    full = np.abs(weight).max(axis=1, keepdims=True) / 7

    errors = [
        ((np.clip(np.rint(weight / s), -7, 7) * s - weight) ** 2).sum() for s in (clipped, full)
    ]
    assert errors[0] < errors[1]
    assert (clipped <= full + 1e-12).all()


@pytest.mark.parametrize("how", ["gptq", "learned"])
def test_rounding_for_the_output_beats_rounding_to_the_nearest(how):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 24)) + 0.1 * rng.normal(size=(500, 24))
    hessian, weight = x.T @ x / 500, rng.normal(size=(12, 24))
    scale = np.abs(weight).max(axis=1, keepdims=True) / 7

    errors = {
        rule: output_error(
            weight, round_rows(weight, scale, hessian, (-7, 7), rule) * scale, hessian
        )
        for rule in ("nearest", how)
    }
    assert errors[how] < 0.8 * errors["nearest"]


@pytest.mark.parametrize("how", ["nearest", "gptq", "learned"])
def test_every_rule_stays_on_the_grid_and_keeps_what_is_on_it(how):
    weight = np.array([[3.0, -7.0, 0.0], [1.0, 2.0, 7.0]])

    found = round_rows(weight, np.ones((2, 1)), np.eye(3), (-7, 7), how)

    np.testing.assert_array_equal(found, weight)


def test_inputs_that_were_never_seen_do_not_stop_gptq():
    hessian = np.diag([1.0, 0.0])

    found = round_rows(np.array([[1.4, 2.6]]), np.ones((1, 1)), hessian, (-7, 7), "gptq")

    np.testing.assert_array_equal(found, [[1, 3]])


def test_two_integers_share_a_byte_low_half_first():
    tensor = pack_int4("w", np.array([[1, -1, 7]]))

    assert tensor.raw_data == bytes([0xF1, 0x07])
    assert tensor.data_type == TensorProto.INT4
    assert pack_rows(np.array([[-8, 7, 1, 0]])).tolist() == [[0 | 9 << 4, 15 | 8 << 4]]


@pytest.mark.parametrize(
    "method",
    [
        QuantizeWeights(bits=4, granularity="k:32"),
        QuantizeWeights(bits=4, granularity="rows:16"),
        QuantizeWeights(bits=8, granularity="rows:16"),
        QuantizeWeights(bits=4, embeddings=4),
        QuantizeGroups(),
        QuantizeGroups(awq=True, rounding="nearest", granularity="k:16"),
        QuantizeGroups(bits=8, rounding="nearest", granularity="tensor"),
    ],
    ids=lambda m: Recipe((m,)).label,
)
def test_grouped_weights_keep_the_contract_on_every_engine(wide, texts, method):
    small = check_method(method, wide, texts)

    truth = _answer(wide)
    for engine in ENGINES:
        found = _answer(small, engine)
        cosine = (found * truth).sum() / np.linalg.norm(found) / np.linalg.norm(truth)
        assert cosine > 0.95


def test_four_bits_with_tables_are_a_sixth_of_the_file(tmp_path, texts):
    path = tmp_path / "large.onnx"
    onnx.save(tiny_transformer(width=256, vocab=4000), path)
    model = ingot.load_model(path)

    small = Recipe((QuantizeWeights(bits=4, granularity="k:128", embeddings=4),)).apply(
        model, texts
    )

    assert model.size_bytes / small.size_bytes > 6.5


def test_onnx_runtime_multiplies_packed_integers(wide, texts, tmp_path):
    small = Recipe((QuantizeWeights(bits=4, granularity="k:32"),)).apply(wide, texts)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")

    onnxruntime.InferenceSession(str(small.onnx_path), options)

    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("MatMulNBits") == 6


def test_a_four_bit_table_holds_what_it_says(wide, texts):
    small = Recipe((QuantizeWeights(embeddings=4),)).apply(wide, texts)
    weights = {
        w.name: numpy_helper.to_array(w) for w in read_onnx(small.onnx_path).graph.initializer
    }
    truth = next(
        numpy_helper.to_array(w)
        for w in read_onnx(wide.onnx_path).graph.initializer
        if w.name == "table"
    )

    packed = weights["table_int4"]
    values = np.concatenate([packed & 15, packed >> 4], axis=1).astype(int) - 8
    assert packed.shape == (200, 32)
    assert sqnr_db(truth, values * weights["table_scale"]) > 17


def test_awq_leaves_the_answers_of_the_float_graph_alone(wide, texts):
    from ingot.compress.quantize.moments import layer_moments
    from ingot.compress.quantize.placement import place_weights
    from ingot.compress.quantize.prepare import prepare
    from ingot.compress.quantize.smooth import scale_for_weights
    from ingot.compress.quantize.weights import grouped_layers

    graph = prepare(read_onnx(wide.onnx_path))
    layers = grouped_layers(graph, place_weights(graph))
    moments = layer_moments(graph, layers, texts.split("calibration"))
    scale_for_weights(graph, moments, bits=4, granularity=Granularity.parse("k:16"))

    feeds = toy_tokens(16, seed=5, vocab=200)
    found = onnxruntime.InferenceSession(graph.proto.SerializeToString()).run(None, feeds)[0]
    np.testing.assert_allclose(found, _answer(wide), atol=1e-5)


def test_the_error_of_each_layers_output_is_logged(wide, texts):
    run = Run()
    Recipe((QuantizeGroups(),)).apply(wide, texts, run=run)

    errors = [facts["output_error"] for _, facts in run.records if "output_error" in facts]
    assert len(errors) == 6
    assert all(0 < e < 0.05 for e in errors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "bits must be 4 or 8; got 3"),
        ({"embeddings": 16}, "embeddings must be 8 or 4 bits, or 0"),
        ({"embeddings": True}, "embeddings must be 8 or 4 bits, or 0"),
        ({"granularity": "column"}, "granularity must be"),
    ],
)
@pytest.mark.parametrize("cls", [QuantizeWeights, QuantizeGroups])
def test_settings_that_make_no_sense_are_refused(cls, settings, message):
    with pytest.raises(RecipeError, match=message):
        cls(**settings)


def test_an_unknown_rounding_is_refused():
    with pytest.raises(RecipeError, match="nearest, gptq, learned; got 'up'"):
        QuantizeGroups(rounding="up")


def test_integers_never_leave_their_range():
    assert limits_of(4) == (-7, 7)
    assert limits_of(8) == (-127, 127)
