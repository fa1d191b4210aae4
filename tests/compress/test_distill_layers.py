import numpy as np
import onnx
import pytest

import ingot
from ingot.compress.distill.layers import DistillLayers
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.models.blocks import block_graph, find_blocks
from ingot.models.onnx_format import read_onnx
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.testing.check_method import check_method
from ingot.testing.tiny import tiny_transformer, toy_tokens


@pytest.fixture
def deep(tmp_path):
    path = tmp_path / "deep.onnx"
    onnx.save(tiny_transformer(layers=3), path)
    return ingot.load_model(path, name="deep")


@pytest.fixture
def texts():
    return ingot.make_data({"training": ingot.Split(toy_tokens(64, seed=2))}, task="none")


def _answer(model):
    session = open_session(model, EngineConfig(threads=1))
    return session.run(toy_tokens(32, seed=9))["embedding"]


def _loss(model, truth):
    return float(np.square(_answer(model) - truth).mean())


def test_layerwise_distillation_keeps_the_contract(deep, texts):
    check_method(DistillLayers(steps=3), deep, texts)


@pytest.mark.parametrize("granularity", ["row", "rows:16", "k:16", "tensor"])
def test_distilled_blocks_answer_better_than_rounded_ones(deep, texts, granularity):
    run = Run()
    learnt = Recipe((DistillLayers(granularity=granularity, rate=1e-3),)).apply(
        deep, texts, run=run
    )

    rounded = Recipe((QuantizeWeights(bits=4, granularity=granularity),)).apply(deep, texts)
    truth = _answer(deep)
    assert _loss(learnt, truth) < 0.7 * _loss(rounded, truth)
    blocks = [facts for name, facts in run.records if name.startswith("block")]
    assert len(blocks) == 3
    assert all(facts["loss_after"] < facts["loss_before"] for facts in blocks)


def test_random_tokens_teach_something_too(deep, texts):
    learnt = Recipe((DistillLayers(random_tokens=True, granularity="row", rate=1e-3),)).apply(
        deep, texts
    )

    rounded = Recipe((QuantizeWeights(bits=4),)).apply(deep, texts)
    truth = _answer(deep)
    assert _loss(learnt, truth) < 0.85 * _loss(rounded, truth)


def test_what_is_trained_at_once_fits_in_two_blocks_and_what_adam_keeps(deep, texts):
    run = Run()
    Recipe((DistillLayers(steps=1),)).apply(deep, texts, run=run)

    graph = prepare(read_onnx(deep.onnx_path))
    part = block_graph(graph.proto, find_blocks(graph.proto)[1])
    block = sum(4 * int(np.prod(w.dims)) for w in part.graph.initializer)
    found = [facts["trained_bytes"] for name, facts in run.records if name.startswith("block")]
    assert len(found) == 3
    assert 0.9 * 4 * block < max(found) <= 4 * block


def test_the_copy_that_training_made_worse_is_not_kept(deep, texts):
    run, still = Run(), Run()
    Recipe((DistillLayers(rate=50.0, steps=5),)).apply(deep, texts, run=run)
    Recipe((DistillLayers(rate=1e-12, steps=1),)).apply(deep, texts, run=still)

    blocks = [facts for name, facts in run.records if name.startswith("block")]
    assert blocks == [facts for name, facts in still.records if name.startswith("block")]
    assert all(facts["loss_after"] == facts["loss_before"] for facts in blocks)


def test_weights_are_stored_as_integers(deep, texts):
    small = Recipe((DistillLayers(steps=1),)).apply(deep, texts)

    kinds = [w.data_type for w in read_onnx(small.onnx_path).graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 18
    assert deep.size_bytes / small.size_bytes > 3


def test_a_network_without_repetition_is_refused(cnn, images):
    data = ingot.make_data({"training": ingot.Split({"image": images[0]})}, task="none")

    with pytest.raises(RecipeError, match="no block repeats"):
        Recipe((DistillLayers(),)).apply(cnn, data)


def test_random_tokens_need_a_model_of_tokens(deep, texts):
    method = DistillLayers(random_tokens=True)
    bare = ingot.make_data(
        {"training": ingot.Split({"x": np.ones((4, 3), np.float32)})}, task="none"
    )

    with pytest.raises(RecipeError, match="looks 'input_ids' up in a table; got inputs \\['x'\\]"):
        method._split(bare, read_onnx(deep.onnx_path), Run())


@pytest.mark.parametrize("name", ["steps", "rate", "rows"])
def test_settings_must_be_positive(name):
    with pytest.raises(RecipeError, match=f"{name} must be positive; got 0"):
        DistillLayers(**{name: 0})
