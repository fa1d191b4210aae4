import errno
import json
from dataclasses import replace

import numpy as np
import pytest

import ingot
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.core.errors import ClaimError, DataError, EngineError, IngotError
from ingot.core.progress import SILENT
from ingot.evaluate.evidence import Interval, read_evidence
from ingot.models.store import find_model, open_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.search import judge
from ingot.search.job import Job
from ingot.search.judge import Judged
from ingot.search.ladder import fewer_threads
from ingot.search.optimize import default_claims, optimize, plan
from ingot.search.trial import Outcome, Trial

ONE = EngineConfig(threads=1)
CLAIM = ["agreement >= 0.9"]


def test_what_is_kept_is_written_with_its_evidence_recipe_and_report(cnn, data, trials, tmp_path):
    result = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best", goal="size")

    there = {path.name for path in (tmp_path / "best").iterdir()}
    assert there >= {"model", "evidence.json", "recipe.toml", "report.json"}
    assert open_model(tmp_path / "best" / "model").digest == result.model.digest
    assert read_evidence(tmp_path / "best" / "evidence.json") == result.chosen.evidence
    assert Recipe.read(tmp_path / "best" / "recipe.toml") == result.chosen.trial.recipe


def test_the_kept_model_answers_and_its_evidence_is_about_it(cnn, data, trials, tmp_path, images):
    result = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best", goal="size")

    answer = open_session(result.model, result.chosen.trial.config).run({"image": images[0][:2]})
    assert answer["logits"].shape == (2, 4)
    assert result.chosen.evidence.model == result.model.digest
    assert result.chosen.evidence.baseline == cnn.digest
    assert result.chosen.evidence.passed


def test_goal_size_keeps_the_smallest(cnn, data, trials, tmp_path):
    result = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "b", goal="size")

    assert result.chosen.size_bytes == min(o.size_bytes for o in result.outcomes)


def test_a_claim_that_nothing_keeps_leaves_a_report_and_no_model(cnn, data, trials, tmp_path):
    claims = ["size ratio <= 0.01"]
    result = optimize(cnn, data, require=claims, trials=trials, out=tmp_path / "best")

    assert (result.chosen, result.model) == (None, None)
    assert "None of 2" in result.summary
    assert {p.name for p in (tmp_path / "best").iterdir()} <= {"report.json", "report.html"}
    assert all("size ratio" in outcome.reason.lower() for outcome in result.outcomes)


def test_the_unchanged_model_is_kept_where_compression_does_not_pay(cnn, data, tmp_path):
    trials = (Trial(Recipe(), ONE),)
    result = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best")

    assert result.chosen.trial.is_float
    assert "compression does not pay" in result.summary


def test_a_method_that_refuses_is_a_failed_trial_with_its_reason(cnn, data, trials, tmp_path):
    bad = Trial(Recipe((QuantizeStatic(skip=("nowhere",)),)), ONE)
    result = optimize(cnn, data, require=CLAIM, trials=(*trials, bad), out=tmp_path / "best")

    assert result.chosen is not None
    assert "nowhere" in result.outcomes[2].reason
    assert any("could not be used" in note for note in result.notes)


def test_an_engine_that_cannot_run_is_a_failed_trial(cnn, data, trials, tmp_path):
    bad = Trial(Recipe(), EngineConfig("torch-eager", threads=1))
    result = optimize(cnn, data, require=CLAIM, trials=(*trials, bad), out=tmp_path / "best")

    assert not result.outcomes[2].ran
    assert "torch" in result.outcomes[2].reason


def test_a_model_that_runs_nowhere_is_refused(cnn, data, tmp_path):
    trials = (Trial(Recipe(), EngineConfig("torch-eager", threads=1)),)

    with pytest.raises(EngineError, match="at least one engine; got none"):
        optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best")


@pytest.mark.parametrize(
    ("claim", "error"),
    [("acuracy drop <= 0.01", ClaimError), ("accuracy drop <= 0.001", ClaimError)],
)
def test_claims_are_refused_before_anything_is_made(cnn, data, tmp_path, monkeypatch, claim, error):
    monkeypatch.setattr("ingot.search.ladder.make_all", None)

    with pytest.raises(error):
        optimize(cnn, data, require=[claim], out=tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_data_that_do_not_fit_the_model_are_refused_before_anything_is_made(
    cnn, tmp_path, monkeypatch
):
    monkeypatch.setattr("ingot.search.ladder.make_all", None)
    rows = np.random.default_rng(0).random((400, 3, 8, 8), np.float32)
    split = ingot.Split({"image": rows}, np.zeros(400, int))
    wrong = ingot.make_data({"test": split}, task="classification")

    with pytest.raises(DataError, match="image"):
        optimize(cnn, wrong, require=CLAIM, out=tmp_path / "best")


def test_interrupted_work_goes_on_where_it_stopped(cnn, data, trials, tmp_path, monkeypatch):
    more = (*trials, Trial(Recipe((QuantizeWeights(),)), ONE))
    applied = []
    apply = Recipe.apply

    def counted(self, *args, **kwargs):
        applied.append(self.label)
        if len(applied) == 2:
            raise KeyboardInterrupt
        return apply(self, *args, **kwargs)

    monkeypatch.setattr(Recipe, "apply", counted)
    with pytest.raises(KeyboardInterrupt):
        optimize(cnn, data, require=CLAIM, trials=more, out=tmp_path / "best")
    assert not (tmp_path / "best").exists()

    optimize(cnn, data, require=CLAIM, trials=more, out=tmp_path / "best")

    first, second = more[1].recipe.label, more[2].recipe.label
    assert applied == [first, second, second]


def test_interrupted_predictions_are_not_made_again(cnn, data, trials, tmp_path, monkeypatch):
    asked = []
    predict = judge.predict_split

    def counted(model, config, split, **options):
        asked.append(model.digest)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return predict(model, config, split, **options)

    monkeypatch.setattr(judge, "predict_split", counted)
    with pytest.raises(KeyboardInterrupt):
        optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best")

    optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best")

    assert asked == [cnn.digest, asked[1], asked[1]]


def test_a_second_run_of_the_same_job_makes_and_times_nothing(
    cnn, data, trials, tmp_path, monkeypatch
):
    first = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "a")
    monkeypatch.setattr(Recipe, "apply", None)
    monkeypatch.setattr(judge, "measure", None)

    second = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "b")

    assert [o.latency for o in second.outcomes] == [o.latency for o in first.outcomes]


def test_fresh_forgets_what_was_finished(cnn, data, trials, tmp_path, monkeypatch):
    optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "a")
    monkeypatch.setattr(judge, "measure", None)

    with pytest.raises(TypeError):
        optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "b", fresh=True)


def test_another_claim_is_another_job(cnn, data, trials, tmp_path, monkeypatch):
    optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "a")
    monkeypatch.setattr(judge, "measure", None)

    with pytest.raises(TypeError):
        optimize(cnn, data, require=["agreement >= 0.8"], trials=trials, out=tmp_path / "b")


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    cnn, data, trials, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ingot.core.files.os.fsync", full)

    with pytest.raises(IngotError, match="must fit on the disk"):
        optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_what_an_earlier_run_left_is_replaced(cnn, data, trials, tmp_path):
    optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best")

    optimize(cnn, data, require=["size ratio <= 0.01"], trials=trials, out=tmp_path / "best")

    assert not (tmp_path / "best" / "evidence.json").exists()
    assert not (tmp_path / "best" / "model").exists()


def test_progress_says_what_happens(cnn, data, trials, tmp_path, steps):
    optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best", progress=steps)

    said = "\n".join(steps.said)
    for part in ("make QuantizeStatic", "predict with unchanged", "evidence for"):
        assert part in said


def test_the_result_is_json(cnn, data, trials, tmp_path):
    result = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "best")

    body = json.loads(json.dumps(result.to_json()))
    assert body["chosen"] in body["outcomes"]
    assert len(body["outcomes"]) == 2


def test_a_plan_is_what_is_tried(cnn, data):
    found = plan(cnn, data, threads=1)

    assert found[0].is_float
    assert len({trial.digest for trial in found}) == len(found)
    assert {trial.config.engine for trial in found} >= {"onnxruntime"}


def test_without_a_calibration_split_nothing_that_needs_one_is_planned(cnn, data):
    bare = ingot.make_data({"test": data.split("test")}, task="classification")

    methods = {type(m).__name__ for trial in plan(cnn, bare) for m in trial.recipe.methods}
    assert methods == {"QuantizeWeights"}


def test_buckets_go_into_every_trial_of_masked_text_but_where_nothing_is_padded(encoder, texts):
    found = plan(encoder, texts, threads=1, buckets=(4, 8))
    padding = [t.config.buckets for t in found if t.config.engine != "native"]

    assert set(padding) == {(4, 8)}
    assert {t.config.buckets for t in found if t.config.engine == "native"} <= {()}


def test_the_default_claim_follows_the_task(data):
    assert default_claims(data) == ("accuracy drop <= 0.01",)


def test_no_engine_at_all_is_said_with_the_reasons(cnn, data, monkeypatch):
    monkeypatch.setattr("ingot.search.optimize.all_engines", lambda factory: {})

    with pytest.raises(EngineError, match="ingot doctor"):
        plan(cnn, data)


def test_a_model_removed_from_the_store_is_made_again(cnn, data, trials, tmp_path):
    first = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "a")
    small = find_model(first.outcomes[1].model)
    small.path.rename(tmp_path / "elsewhere")

    second = optimize(cnn, data, require=CLAIM, trials=trials, out=tmp_path / "b")

    assert second.outcomes[1].model == small.digest
    assert small.path.is_dir()


def test_a_plan_compiles_ahead_for_the_batches_asked_for_where_openvino_can(
    cnn, encoder, data, texts
):
    pictures = plan(cnn, data, threads=1, shapes=((4, None), (1, None)))
    masked = plan(encoder, texts, threads=1, shapes=((4, None),))

    sizes = {(t.config.engine, t.config.batch_sizes) for t in pictures}
    assert sizes == {("openvino", (1, 4)), ("onnxruntime", ())}
    assert {t.config.batch_sizes for t in masked} == {()}


def test_small_networks_are_also_tried_on_one_core(cnn, data, tmp_path):
    job = Job(cnn, data, ())
    fast, slow = (_held(latency) for latency in (0.4, 3.0))

    found = fewer_threads(job, Judged((fast, slow), fast, "accuracy", "batch 1"), SILENT)

    assert [t.config.threads for t in found] == [1]
    assert found[0].recipe == fast.trial.recipe
    assert fewer_threads(replace(job, threads=2), Judged((fast,), fast, "a", "b"), SILENT) == ()


def _held(latency):
    trial = Trial(Recipe((QuantizeStatic(),)), EngineConfig("openvino", threads=2))
    ends = (Interval(v, v, v) for v in (latency, 0.9))
    p50, score = ends
    return Outcome(trial, "sha256:m", 100, p50, 0.0, score, None, True)


def test_a_search_for_bytes_also_tries_weights_in_four_bits(encoder, texts):
    for goal, expected in (("size", True), ("latency", False)):
        methods = [m for t in plan(encoder, texts, threads=1, goal=goal) for m in t.recipe.methods]
        assert any(getattr(m, "bits", 8) == 4 for m in methods) is expected


def test_where_nothing_holds_the_nearest_is_named_and_what_is_left_to_try(
    cnn, data, trials, tmp_path
):
    result = optimize(
        cnn, data, require=["size ratio <= 0.001"], trials=trials, out=tmp_path / "best"
    )

    assert result.chosen is None
    assert result.notes[0].startswith(f"Nearest to the claims came {trials[1].label}: Size ratio")
    assert "quantization-aware training" in result.notes[0]


def test_what_stays_in_float_is_in_the_result_and_in_the_report(cnn, data, trials, tmp_path):
    careful = Recipe((QuantizeStatic(observer="min-max", skip=("Gemm_logits",)),))
    mine = (trials[0], Trial(careful, ONE))
    larger = ["size ratio >= 1.001"]  # pairs of nodes outweigh what so small a network saves
    result = optimize(cnn, data, require=larger, trials=mine, out=tmp_path / "b")

    assert ("Gemm_logits", "named in skip") in {(n.name, n.reason) for n in result.left_in_float}
    assert "Gemm_logits" in [row["name"] for row in result.to_json()["left_in_float"]]
    facts = json.loads((tmp_path / "b" / "report.json").read_text())["facts"]
    assert "Gemm_logits (Gemm): named in skip" in facts["left in float"]
