import numpy as np
import onnx
import pytest

import ingot
from ingot.compress.depth.drop_layers import DropLayers
from ingot.compress.distill._batches import length_sorted
from ingot.compress.distill._losses import make_loss
from ingot.compress.distill.distill import Distill, trained_weights
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Task
from ingot.models.blocks import find_blocks
from ingot.models.network import OnnxNetwork
from ingot.models.onnx_format import read_onnx
from ingot.testing.check_method import check_method
from ingot.testing.tiny import tiny_transformer, toy_tokens


@pytest.fixture
def deep(tmp_path):
    path = tmp_path / "deep.onnx"
    onnx.save(tiny_transformer(layers=4), path)
    return ingot.load_model(path, name="deep")


@pytest.fixture
def texts():
    return ingot.make_data(
        {
            "calibration": ingot.Split(toy_tokens(16, seed=1)),
            "training": ingot.Split(toy_tokens(96, seed=2)),
        },
        task="none",
    )


def _blocks(model):
    proto = read_onnx(model.onnx_path)
    prepare(proto)
    return find_blocks(proto)


def test_drop_layers_keeps_the_contract(deep, texts):
    check_method(DropLayers(0.5), deep, texts)


def test_half_of_the_layers_stay(deep, texts):
    small = Recipe((DropLayers(0.5),)).apply(deep, texts)

    assert len(_blocks(small)) == 2
    assert small.size_bytes < 0.62 * deep.size_bytes


def test_the_layer_that_does_least_is_dropped_first(tmp_path, texts):
    proto = tiny_transformer(layers=3)
    for weight in proto.graph.initializer:
        if weight.name in ("w_o1", "w_d1", "b_o1", "b_d1"):  # layer 1 adds nothing
            zero = np.zeros(tuple(weight.dims), np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(zero, weight.name))
    onnx.save(proto, tmp_path / "idle.onnx")
    model, run = ingot.load_model(tmp_path / "idle.onnx"), Run()

    Recipe((DropLayers(0.67),)).apply(model, texts, run=run)

    assert [name for name, _ in run.records] == ["block 1"]
    assert run.records[0][1]["output_error"] < 1e-6


def test_the_layers_that_are_named_stay(deep, texts):
    small = Recipe((DropLayers(kept=(0, 3)),)).apply(deep, texts)

    assert {w.name for w in read_onnx(small.onnx_path).graph.initializer} & {"w_q", "w_q3"} == {
        "w_q",
        "w_q3",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1.0}, "keep must be between 0 and 1; got 1.0"),
        ({"kept": (1, 1)}, "kept must hold indices from 0, each once"),
        ({"kept": (-1,)}, "kept must hold indices from 0, each once"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(settings, message):
    with pytest.raises(RecipeError, match=message):
        DropLayers(**settings)


def test_an_index_beyond_the_last_layer_is_refused(deep, texts):
    with pytest.raises(RecipeError, match="0 to 3; got 4"):
        Recipe((DropLayers(kept=(0, 4)),)).apply(deep, texts)


def test_a_network_without_repetition_is_refused(cnn, images):
    data = ingot.make_data({"calibration": ingot.Split({"image": images[0]})}, task="none")

    with pytest.raises(RecipeError, match="no block repeats"):
        Recipe((DropLayers(),)).apply(cnn, data)


def test_distillation_brings_a_shallow_network_nearer_to_its_teacher(deep, texts):
    run = Run()
    recipe = Recipe((DropLayers(0.5), Distill(epochs=8, rate=3e-3, rows=16)))
    recipe.apply(deep, texts, run=run)

    losses = [facts["held_out_loss"] for _, facts in run.records if "held_out_loss" in facts]
    assert min(losses[1:]) < 0.7 * losses[0]


def test_the_same_seed_gives_the_same_student(deep, texts):
    recipe = Recipe((DropLayers(0.5), Distill(epochs=1, rows=32)))

    first, second = (recipe.apply(deep, texts, seed=3) for _ in range(2))

    assert first.digest == second.digest


def test_training_that_makes_it_worse_leaves_the_weights_alone(deep, texts):
    recipe = Recipe((DropLayers(0.5), Distill(epochs=1, rate=100.0, rows=48)))

    trained = recipe.apply(deep, texts)

    plain = Recipe((DropLayers(0.5),)).apply(deep, texts)
    pairs = [
        {w.name: onnx.numpy_helper.to_array(w) for w in read_onnx(m.onnx_path).graph.initializer}
        for m in (trained, plain)
    ]
    assert pairs[0].keys() == pairs[1].keys()
    assert all(np.array_equal(value, pairs[1][name]) for name, value in pairs[0].items())


def test_a_student_can_be_quantized_after_it_was_stored(deep, texts):
    begin = (DropLayers(0.5), Distill(epochs=1))
    whole = Recipe((*begin, QuantizeStatic()))
    student = Recipe(begin).apply(deep, texts)

    resumed = whole.apply(deep, texts, after=student)

    assert resumed.lineage.recipe == whole.digest
    assert resumed.lineage.parent == deep.digest
    assert resumed.digest == whole.apply(deep, texts).digest


def test_distillation_without_a_teacher_is_refused(deep, texts):
    with pytest.raises(RecipeError, match="must know its teacher"):
        Distill().apply(OnnxNetwork(read_onnx(deep.onnx_path)), texts, Run())


def test_one_unlabelled_example_is_too_few(deep):
    data = ingot.make_data({"training": ingot.Split(toy_tokens(1))}, task="none")

    with pytest.raises(RecipeError, match="at least two examples; got 1"):
        Recipe((Distill(),)).apply(deep, data)


@pytest.mark.parametrize("name", ["minutes", "epochs", "rate", "rows"])
def test_settings_of_distillation_must_be_positive(name):
    with pytest.raises(RecipeError, match=f"{name} must be positive; got 0"):
        Distill(**{name: 0})


def test_embeddings_and_masks_are_not_trained(deep):
    proto = read_onnx(deep.onnx_path)
    prepare(proto)
    names = trained_weights(OnnxNetwork(proto))

    assert {"w_q", "b_q", "w_d3", "ln2_g"} <= set(names)
    assert not {"table", "low", "one", "root"} & set(names)


def test_batches_hold_every_row_once_and_are_cut_to_their_longest():
    split = ingot.Split(toy_tokens(30, length=12))
    split.inputs["input_ids"][:, 0] = np.arange(30)
    found = list(length_sorted(split, 8, seed=0))

    assert sorted(np.concatenate([b["input_ids"][:, 0] for b in found])) == list(range(30))
    assert all(b["attention_mask"].any(axis=0).all() for b in found)
    widths = [b["input_ids"].shape[1] for b in found]
    assert widths == sorted(widths)


@pytest.mark.parametrize("task", list(Task))
def test_a_perfect_student_has_no_loss_and_a_worse_one_more(task):
    import torch

    truth = {"y": torch.randn(6, 4, generator=torch.Generator().manual_seed(0))}
    loss = make_loss(task, ["y"])

    near, far = ({"y": truth["y"] + e * torch.eye(6, 4)} for e in (0.1, 1.0))
    assert float(loss(truth, truth)) == pytest.approx(0, abs=1e-5)
    assert 0 < float(loss(near, truth)) < float(loss(far, truth))


def test_further_outputs_count_too():
    import torch

    truth = {"y": torch.ones(2, 2), "z": torch.tensor([1.0, 3.0])}
    loss = make_loss(Task.NONE, ["y", "z"])

    answers = truth | {"z": torch.tensor([2.0, 3.0])}
    assert float(loss(answers, truth)) == pytest.approx(0.5)  # mean square 0.5, variance 1
