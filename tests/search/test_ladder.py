from dataclasses import replace

import pytest

from ingot.compress.quantize.equalize import Equalize
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.core.progress import SILENT
from ingot.evaluate.evidence import Interval
from ingot.runtime.engine import EngineConfig
from ingot.search.job import Job
from ingot.search.judge import Judged
from ingot.search.ladder import contenders, elsewhere, merge, repair
from ingot.search.make import Made
from ingot.search.trial import Outcome, Trial

HERE, THERE = EngineConfig("openvino", threads=1), EngineConfig("onnxruntime", threads=1)


def outcome(latency, *, config=HERE, passed=True, observer="histogram"):
    p50, score = (Interval(v, v, v) for v in (latency, 0.9))
    trial = Trial(Recipe((QuantizeStatic(observer=observer),)), config)
    return Outcome(trial, "sha256:m", 100, p50, 0.0, score, None, passed)


def judged(*outcomes):
    return Judged(outcomes, outcomes[0], "accuracy", "batch 1")


@pytest.fixture
def job(cnn, data):
    return Job(cnn, data, ())


def test_what_holds_on_one_engine_is_run_on_the_one_that_is_faster(job):
    good = outcome(2.0, observer="entropy")
    broken = outcome(1.0, config=THERE, passed=False)

    found = elsewhere(job, judged(good, broken), SILENT)

    assert found == (Trial(good.trial.recipe, THERE),)


def test_where_the_fastest_holds_nothing_moves(job):
    assert elsewhere(job, judged(outcome(1.0), outcome(2.0, config=THERE)), SILENT) == ()
    assert elsewhere(job, judged(outcome(1.0, passed=False)), SILENT) == ()


def test_the_worst_layers_are_left_in_float_together_and_one_at_a_time(job):
    broken = outcome(1.0, passed=False)

    found = repair(job, judged(outcome(2.0), broken), SILENT)

    assert found[-1].recipe.methods == (Equalize(), broken.trial.recipe.methods[0])
    methods = [trial.recipe.methods[0] for trial in found[:-1]]
    assert methods[0] == replace(
        broken.trial.recipe.methods[0], rounding="gptq", bias_correction=True
    )
    skips = [m.skip for m in methods[1:]]
    assert (skips[0][0],) == skips[0][:1]
    assert max(map(len, skips)) == 2
    alone = [s[0] for s in skips if len(s) == 1]
    assert len(alone) == len(set(alone)) == 3  # this network has no more layers


def test_what_is_no_faster_than_what_holds_is_not_mended(job):
    assert repair(job, judged(outcome(1.0), outcome(0.99, passed=False)), SILENT) == ()


def made_of(*outcomes):
    return [Made(o.trial, None) for o in outcomes]


def test_only_what_may_still_be_the_best_is_timed_again():
    unchanged = replace(outcome(9.0), trial=Trial(Recipe(), HERE))
    best, near, far = (
        outcome(v, observer=o) for v, o in ((1.0, "mse"), (1.2, "min-max"), (2.0, "entropy"))
    )
    failed = Outcome(Trial(Recipe((QuantizeStatic(),)), THERE))
    tried = (unchanged, best, near, far, failed)

    again = contenders(made_of(*tried), judged(*tried))

    assert [one.trial for one in again] == [unchanged.trial, best.trial, near.trial]


def test_what_was_timed_again_replaces_what_was_known():
    old, far = outcome(1.0, observer="mse"), outcome(5.0, observer="entropy")
    new = outcome(1.1, observer="mse")

    found = merge(made_of(old, far), judged(old, far), judged(new))

    assert [o.latency.value for o in found.outcomes] == [1.1, 5.0]
    assert [o.on_frontier for o in found.outcomes] == [True, False]
