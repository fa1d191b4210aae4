import numpy as np
import pytest

import ingot
from ingot.core.errors import ClaimError, DataError, EngineError
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.search.optimize import optimize, plan
from ingot.testing.tiny import tiny_cnn, toy_tokens

CLAIM = ["agreement >= 0.9"]
DRIFT = "Calibration data must look like"


@pytest.fixture
def mixed(data):
    """Give pictures whose calibration rows are a hundred times as bright as those judged."""
    strange = ingot.Split({"image": 100 * data.split("calibration").inputs["image"]})
    splits = {"calibration": strange, "test": data.split("test")}
    return ingot.make_data(splits, task="classification", name="mixed")


@pytest.fixture
def strange_words():
    rows = toy_tokens(300)
    rows |= {"input_ids": rows["input_ids"] + 10_000}
    return ingot.make_data({"test": ingot.Split(rows)}, task="none")


def test_calibration_data_of_another_kind_are_noted_in_the_report(
    cnn, data, mixed, trials, tmp_path
):
    good = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "a")
    bad = optimize(cnn, mixed, require=CLAIM, trials=trials, out=tmp_path / "b")

    assert any(note.startswith(DRIFT) for note in bad.notes)
    assert DRIFT in (tmp_path / "b" / "report.json").read_text()
    assert not any(note.startswith(DRIFT) for note in good.notes)


def test_they_are_warned_about_before_anything_is_made(cnn, mixed, tmp_path, monkeypatch, caplog):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ingot.search.ladder.make_all", stop)
    with pytest.raises(KeyboardInterrupt):
        optimize(cnn, mixed, require=CLAIM, out=tmp_path / "best")

    assert DRIFT in caplog.text


def test_tokens_of_another_tokenizer_are_refused_before_anything_is_made(
    encoder, strange_words, tmp_path, monkeypatch
):
    monkeypatch.setattr("ingot.search.ladder.make_all", None)

    with pytest.raises(DataError, match="made by another tokenizer"):
        optimize(encoder, strange_words, require=["r2 >= 0.5"], out=tmp_path / "best")


def test_a_plan_refuses_tokens_of_another_tokenizer(encoder, strange_words):
    with pytest.raises(DataError, match="made by another tokenizer"):
        plan(encoder, strange_words)


def test_a_plan_refuses_a_claim_that_the_data_could_never_decide(cnn, data):
    with pytest.raises(ClaimError, match="at least 3,6"):
        plan(cnn, data, require=["accuracy drop <= 0.001"])


def test_a_plan_refuses_a_split_that_does_not_fit_the_model_though_it_is_not_judged(cnn, data):
    small = np.zeros((60, 3, 8, 8), np.float32)
    splits = {"calibration": ingot.Split({"image": small}), "test": data.split("test")}

    with pytest.raises(DataError, match="image"):
        plan(cnn, ingot.make_data(splits, task="classification"))


def test_a_plan_refuses_a_split_to_judge_on_that_is_not_there(cnn, data):
    with pytest.raises(DataError, match="tset"):
        plan(cnn, data, split="tset")


def test_a_plan_refuses_an_unknown_goal_with_the_nearest(cnn, data):
    with pytest.raises(EngineError, match="latency"):
        plan(cnn, data, goal="latncy")


def test_a_plan_refuses_a_shape_that_does_not_fit_the_model(tmp_path, data):
    proto = tiny_cnn()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    one = store_model(proto, lineage=Lineage("onnx"), name="one", root=tmp_path)

    with pytest.raises(EngineError, match="fixed batch of 1"):
        plan(one, data, shapes=[(4, None)])


def test_a_search_tries_what_the_plan_for_its_goal_says(encoder, texts, tmp_path, monkeypatch):
    tried = []

    def keep(job, trials, *rest, **options):
        tried.extend(trials)
        raise KeyboardInterrupt

    monkeypatch.setattr("ingot.search.optimize.climb", keep)
    with pytest.raises(KeyboardInterrupt):
        optimize(encoder, texts, goal="size", threads=1, out=tmp_path / "best")

    assert tuple(tried) == plan(encoder, texts, goal="size", threads=1)
    assert any(getattr(m, "bits", 8) == 4 for t in tried for m in t.recipe.methods)
