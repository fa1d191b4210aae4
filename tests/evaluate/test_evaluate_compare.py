from dataclasses import replace

import numpy as np
import pytest

import ingot
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.core.errors import ClaimError, DataError
from ingot.evaluate.compare import check_alike, compare, predict_split
from ingot.evaluate.costs import timing_feeds
from ingot.evaluate.metrics import METRICS
from ingot.evaluate.quality import changed_examples, quality
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.machine import machine_digest
from ingot.testing.tiny import tiny_cnn, toy_images

ONE = EngineConfig(threads=1)


@pytest.fixture
def data():
    images, labels = toy_images(460)
    splits = {
        "calibration": ingot.Split({"image": images[:60]}),
        "test": ingot.Split({"image": images[60:]}, labels[60:]),
    }
    return ingot.make_data(splits, task="classification", name="toy")


@pytest.fixture
def small(cnn, data):
    return Recipe((QuantizeStatic(),)).apply(cnn, data)


def quick(*sides, **options):
    return compare(*sides, config=ONE, measure_speed=False, **options)


def test_a_model_against_itself_changes_nothing_but_keeps_an_interval_with_a_width(cnn, data):
    evidence = quick(cnn, cnn, data)
    drop = evidence.find("accuracy").drop

    assert drop.value == 0.0
    assert drop.low < 0 < drop.high
    assert evidence.changed == ()


def test_evidence_is_bound_to_models_data_machine_and_how_they_ran(cnn, small, data):
    evidence = quick(cnn, small, data)

    assert (evidence.baseline, evidence.model) == (cnn.digest, small.digest)
    assert (evidence.data, evidence.config, evidence.baseline_config) == (data.digest, ONE, ONE)
    assert evidence.machine == machine_digest(evidence.machine_facts)


def test_size_is_the_bytes_that_serving_needs(cnn, small, data):
    row = quick(cnn, small, data).find("size")

    assert row.baseline.value == cnn.size_bytes
    assert row.ratio.value == small.size_bytes / cnn.size_bytes
    assert row.ratio.low == row.ratio.high


def test_latency_is_a_paired_ratio_per_shape(cnn, data):
    evidence = compare(cnn, cnn, data, config=ONE, shapes=((1, None), (4, None)))
    rows = [row for row in evidence.comparisons if row.metric == "latency"]

    assert [row.setting for row in rows] == ["batch 1", "batch 4"]
    assert all(r.ratio.low <= r.ratio.value <= r.ratio.high for r in rows)
    assert all(r.ratio.method == "paired-bootstrap" for r in rows)


def test_fresh_processes_are_measured_when_a_claim_asks(cnn, data):
    evidence = quick(cnn, cnn, data, require=["memory <= 4 GiB"])

    assert evidence.verdicts[0].passed
    assert evidence.find("memory").baseline.value > 10 * 2**20
    assert evidence.find("cold_start") is None


def test_a_claim_on_latency_needs_latency_to_be_measured(cnn, data):
    with pytest.raises(ClaimError, match="leave measure_speed on"):
        quick(cnn, cnn, data, require=["latency <= 5 ms"])


def test_claims_are_checked_before_any_model_runs(cnn, data, monkeypatch):
    monkeypatch.setattr("ingot.evaluate.compare.open_session", None)

    with pytest.raises(ClaimError, match="at least"):
        quick(cnn, cnn, data, require=["accuracy drop <= 0.001"])


def test_a_metric_of_another_task_is_refused(cnn, data):
    with pytest.raises(DataError, match="must fit the task 'classification'"):
        quick(cnn, cnn, data, metrics=["spearman"])
    with pytest.raises(ClaimError, match="must fit the task 'classification'"):
        quick(cnn, cnn, data, require=["spearman drop <= 0.1"])


def test_labels_that_are_no_class_of_the_model_are_refused(cnn, data):
    split = data.split("test")
    wrong = replace(split, targets=split.targets + 3)
    splits = {"calibration": data.split("calibration"), "test": wrong}

    with pytest.raises(DataError, match="Labels must be from 0 to 3.*got 3 to 6"):
        quick(cnn, cnn, ingot.make_data(splits, task="classification"))


def test_answers_of_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"\[4\] from the baseline and \[5\]"):
        check_alike(np.ones((2, 4)), np.ones((2, 5)))


def test_an_output_that_the_model_does_not_have_gets_the_nearest(cnn, data):
    with pytest.raises(DataError, match="logits"):
        predict_split(cnn, ONE, data.split("test"), output="logit")


def test_without_labels_agreement_is_measured(cnn, small, data):
    images = data.split("test").inputs
    bare = ingot.make_data({"test": ingot.Split(dict(images))}, task="none")
    evidence = quick(cnn, small, bare, require=["cosine >= 0.5"])

    assert evidence.find("cosine").candidate.value > 0.9


def test_pairs_are_compared_by_the_cosine_of_their_rows(encoder, tokens):
    rows = {name: array[:8] for name, array in tokens.items()}
    split = ingot.Split(rows, np.arange(4.0), rows_per_example=2)
    found = predict_split(encoder, ONE, split)
    answers = open_session(encoder, ONE).run(rows)["embedding"]

    first, second = answers[0::2], answers[1::2]
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(found, (first * second).sum(1) / norms, rtol=1e-5)


def test_quality_counts_both_kinds_of_disagreement():
    labels = np.zeros(10, int)
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    before = np.array([right] * 8 + [wrong] * 2)
    after = np.array([right] * 5 + [wrong] * 4 + [right])  # three lost, one gained
    row = quality(METRICS["accuracy"], before, after, labels)

    assert (row.baseline.value, row.candidate.value) == (0.8, 0.6)
    assert row.drop.value == pytest.approx(0.2)
    assert row.drop.low < 0.2 < row.drop.high


def test_quality_of_something_continuous_is_paired_over_examples():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    before = truth + rng.normal(0, 0.3, 300)
    after = before + rng.normal(0, 0.01, 300)
    row = quality(METRICS["spearman"], before, after, truth)

    assert row.drop.high - row.drop.low < 0.5 * (row.baseline.high - row.baseline.low)


def test_a_metric_without_its_targets_is_refused():
    with pytest.raises(DataError, match="must have targets"):
        quality(METRICS["accuracy"], np.ones((2, 2)), np.ones((2, 2)), None)


def test_changed_examples_are_those_whose_answer_changed(data):
    split = data.split("test").take(range(5))
    before = np.eye(4)[[0, 1, 2, 3, 0]]
    after = np.eye(4)[[0, 1, 3, 3, 1]]
    found = changed_examples(data, split, before, after)

    assert sorted(example.index for example in found) == [2, 4]


def test_requests_that_are_timed_are_made_of_real_rows(cnn, data):
    found = timing_feeds(cnn, data.split("test"), [(2, None)])

    np.testing.assert_array_equal(found["batch 2"]["image"], data.split("test").inputs["image"][:2])


def test_the_same_call_gives_the_same_numbers(cnn, small, data):
    first, second = (quick(cnn, small, data).to_statement()["predicate"] for _ in range(2))
    first.pop("created"), second.pop("created")

    assert first == second


def test_other_models_have_other_evidence(cnn, data):
    other = store_model(tiny_cnn(seed=1), lineage=Lineage("onnx"))

    assert quick(cnn, other, data).find("agreement").candidate.value < 1


def test_a_proof_that_any_answer_would_pass_is_refused(tmp_path):
    one = tiny_cnn(classes=1)
    model = store_model(one, lineage=Lineage("onnx"), name="one", root=tmp_path / "store")
    images, _ = toy_images(40)
    bare = ingot.make_data({"test": ingot.Split({"image": images})}, task="none")

    with pytest.raises(DataError, match="two or more values; got 1 per example"):
        quick(model, model, bare, require=["cosine >= 0.5"])
    assert quick(model, model, bare, require=["r2 >= 0.9"]).verdicts[0].passed
