from dataclasses import replace

import numpy as np
import pytest

from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.evaluate.evidence import Comparison, Evidence, Interval
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import engines
from ingot.search.contrast import contrast
from ingot.search.explain import explain, headline, summarize
from ingot.search.result import choose_best
from ingot.search.sensitivity import layer_sensitivity, output_sqnr_db
from ingot.search.space import architecture, default_trials
from ingot.search.trial import Outcome, Trial
from ingot.testing.tiny import tiny_cnn

ONE = EngineConfig(threads=1)
STATIC = Recipe((QuantizeStatic(),))


def outcome(latency, *, quality=0.9, size=100, passed=True, recipe=STATIC, throughput=0.0):
    ends = (Interval(v, v, v) for v in (latency, quality))
    p50, score = ends
    return Outcome(
        Trial(recipe, ONE), "sha256:m", size, p50, throughput, score, None, passed, reason="why"
    )


def test_the_fastest_that_holds_is_kept_not_the_fastest():
    outcomes = [outcome(1.0, passed=False), outcome(3.0), outcome(2.0)]

    assert choose_best(outcomes, "latency")[1].latency.value == 2.0


def test_within_two_per_cent_the_better_answers_win():
    near = [outcome(1.0, quality=0.90), outcome(1.019, quality=0.92), outcome(1.03, quality=0.99)]

    assert choose_best(near, "latency")[1].quality.value == 0.92


def test_within_two_per_cent_of_equal_quality_the_smaller_wins():
    assert choose_best([outcome(1.0, size=9), outcome(1.01, size=8)], "latency")[1].size_bytes == 8


def test_a_goal_of_throughput_keeps_the_most_items_per_second():
    outcomes = [outcome(1.0, throughput=10.0), outcome(2.0, throughput=30.0)]

    assert choose_best(outcomes, "throughput")[1].throughput == 30.0


def test_the_kept_one_says_so_and_the_others_stay_as_they_were():
    marked, kept = choose_best([outcome(1.0), outcome(2.0)], "latency")

    assert kept is marked[0]
    assert kept.reason == "kept: best latency of the 2 that hold every claim"
    assert marked[1].reason == "why"


@pytest.mark.parametrize(
    "outcomes", [[], [outcome(1.0, passed=False)], [Outcome(Trial(STATIC, ONE))]]
)
def test_nothing_is_kept_when_nothing_holds(outcomes):
    assert choose_best(outcomes, "latency")[1] is None


def test_what_was_faster_but_broke_a_claim_is_explained():
    fast, kept = outcome(0.5, passed=False), outcome(1.0)
    notes = explain(
        [fast, kept, Outcome(Trial(STATIC, ONE), reason="no such node")], kept, "accuracy"
    )

    assert "was kept" in notes[0]
    assert "is faster (0.5 ms) but breaks a claim: why" in notes[1]
    assert "could not be used: no such node" in notes[2]


def proof(latency, size):
    """Return evidence with these ratios to the baseline."""
    rows = tuple(
        Comparison(name, "ms", "lower", *(Interval(v, v, v) for v in (1, ratio, ratio - 1, ratio)))
        for name, ratio in (("latency", latency), ("size", size))
    )
    return Evidence(*("sha256:" + c * 64 for c in "abcd"), {}, ONE, ONE, rows)


@pytest.mark.parametrize(
    ("latency", "size", "title", "words"),
    [
        (0.5, 0.25, "net: 4.0x smaller, 2.0x faster, every claim held", "2.00 times as fast"),
        (2.0, 0.25, "net: 4.0x smaller, every claim held", "2.00 times as slow"),
        (0.99, 0.97, "net: no gain worth having, every claim held", "1.03 times smaller"),
    ],
)
def test_gains_are_said_only_where_there_are_any(latency, size, title, words):
    kept, base = replace(outcome(1.0), evidence=proof(latency, size)), outcome(2.0, recipe=Recipe())

    assert headline("net", kept) == title
    assert words in summarize(kept, base, 5)


def test_the_headline_says_when_nothing_held():
    assert headline("net", None) == "net: nothing kept every claim"
    assert "None of 3" in summarize(None, None, 3)


def test_convolutions_make_a_cnn_and_softmax_between_products_a_transformer(cnn, encoder):
    assert architecture(cnn) == "cnn"
    assert architecture(encoder) == "transformer"


def test_trials_begin_with_the_float_model_on_every_engine(encoder):
    ready = {name: engine for name, engine in engines().items() if engine.available().ok}
    found = default_trials(encoder, ready, threads=1)

    floats = [trial.config for trial in found if trial.is_float]
    wanted = [(n, p) for n, engine in ready.items() for p in engine.precisions(encoder)]
    assert [(c.engine, c.precision) for c in floats] == wanted
    assert all(trial.is_float for trial in found[: len(floats)])


def test_an_engine_that_is_not_there_is_not_tried(cnn):
    ready = {"onnxruntime": engines()["onnxruntime"]}

    assert {t.config.engine for t in default_trials(cnn, ready, threads=1)} == {"onnxruntime"}


def test_sensitivity_of_a_model_of_one_row_per_call_is_that_of_one_of_many(images, tmp_path):
    from ingot.data.data import Split

    proto = tiny_cnn()
    cnn = store_model(tiny_cnn(), lineage=Lineage("onnx"), root=tmp_path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del proto.graph.value_info[:]
    fixed = store_model(proto, lineage=Lineage("onnx"), root=tmp_path / "fixed")
    split = Split({"image": images[0][:8]})

    found, wanted = (layer_sensitivity(m, split, QuantizeStatic()) for m in (fixed, cnn))

    assert [row.layer for row in found] == [row.layer for row in wanted]
    np.testing.assert_allclose([r.sqnr_db for r in found], [r.sqnr_db for r in wanted], atol=0.1)


def test_sensitivity_ranks_every_layer_from_the_worst(cnn, images):
    from ingot.data.data import Split

    found = layer_sensitivity(cnn, Split({"image": images[0][:16]}), QuantizeStatic())

    assert [row.sqnr_db for row in found] == sorted(row.sqnr_db for row in found)
    assert sorted(row.operator for row in found) == ["Conv", "Conv", "Gemm"]
    assert all(0 < row.sqnr_db < 120 for row in found)


def test_a_layer_with_one_outlier_channel_suffers_most_per_tensor(images, tmp_path):
    from onnx import numpy_helper

    from ingot.data.data import Split

    proto = tiny_cnn()
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[0] *= 200
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    model = store_model(proto, lineage=Lineage("onnx"), root=tmp_path)
    split = Split({"image": images[0][:16]})

    whole, single = (
        layer_sensitivity(model, split, replace(QuantizeStatic(), per_channel=flag))
        for flag in (False, True)
    )

    layer = next(node.name for node in proto.graph.node if weight.name in node.input)
    assert {r.layer: r.sqnr_db for r in whole}[layer] < {r.layer: r.sqnr_db for r in single}[layer]


def test_sqnr_is_in_decibels():
    assert output_sqnr_db(np.array([10.0]), np.array([9.0])) == pytest.approx(20.0)
    assert output_sqnr_db(np.ones(3), np.ones(3)) == 120.0


def static(**settings):
    return Recipe((QuantizeStatic(**settings),))


def test_what_one_other_choice_would_do_is_said_in_words():
    kept = outcome(2.0, quality=0.85, recipe=static())
    other = outcome(1.84, quality=0.831, recipe=static(attention=True), passed=False)

    assert contrast([kept, other], kept, "spearman") == (
        "float attention was kept: int8 attention would change spearman by -0.0190 and latency by "
        "-8 %, and breaks a claim.",
    )


def test_candidates_that_differ_in_two_choices_are_not_contrasted():
    kept = outcome(2.0, recipe=static())

    others = [outcome(1.0, recipe=static(attention=True, observer="mse")), outcome(3.0), kept]
    assert contrast(others[:1], kept, "accuracy") == ()


def test_layers_left_in_float_are_named():
    kept = outcome(2.0, recipe=static(skip=("a", "b", "c", "d")))
    other = outcome(1.0, recipe=static(), passed=False)

    assert contrast([other], kept, "accuracy")[0].startswith(
        "a, b, c and 1 more left in float was kept: every layer in integers would change"
    )
