from dataclasses import replace

import pytest

from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.core.errors import EngineError
from ingot.core.goals import GOALS
from ingot.core.progress import SILENT
from ingot.evaluate.evidence import Interval
from ingot.runtime.energy import check_goal
from ingot.runtime.engine import EngineConfig
from ingot.search import goals
from ingot.search.goals import show_cost, with_costs
from ingot.search.job import Job
from ingot.search.journal import Journal
from ingot.search.judge import Judged
from ingot.search.ladder import more_streams
from ingot.search.optimize import optimize
from ingot.search.result import choose_best
from ingot.search.trial import Outcome, Trial


def outcome(latency, *, passed=True, size=100, observer="mse"):
    p50, score = (Interval(v, v, v) for v in (latency, 0.9))
    trial = Trial(Recipe((QuantizeStatic(observer=observer),)), EngineConfig(threads=1))
    return Outcome(trial, "sha256:m", size, p50, 0.0, score, None, passed, reason="holds")


@pytest.fixture
def job(cnn, data):
    return Job(cnn, data, (), "memory")


def test_a_goal_that_takes_processes_is_measured_where_claims_hold(job, monkeypatch, tmp_path):
    sizes = iter([3e6, 1e6] * 6)
    monkeypatch.setattr(goals, "peak_rss", lambda model, config: next(sizes))
    outcomes = [
        outcome(1.0),
        outcome(9.0, passed=False),
        outcome(2.0, size=7, observer="min-max"),
    ]

    priced = with_costs(job, outcomes, lambda digest: job.model, Journal(tmp_path), SILENT)

    assert [o.cost and o.cost.value for o in priced] == [3e6, None, 1e6]
    kept = choose_best(priced, "memory")[1]
    assert kept.size_bytes == 7
    assert kept.reason == "kept: best memory of the 2 that hold every claim; memory 976.6 KiB"


def test_what_was_measured_is_not_measured_again(job, monkeypatch, tmp_path):
    monkeypatch.setattr(goals, "peak_rss", lambda model, config: 5e6)
    journal = Journal(tmp_path)
    first = with_costs(job, [outcome(1.0)], lambda digest: job.model, journal, SILENT)
    monkeypatch.delattr(goals, "peak_rss")

    again = with_costs(job, [outcome(1.0)], lambda digest: job.model, journal, SILENT)

    assert again == first


def test_a_candidate_whose_process_fails_is_out_and_says_why(job, monkeypatch, tmp_path):
    def fail(model, config):
        raise EngineError("the child died")

    monkeypatch.setattr(goals, "peak_rss", fail)

    (found,) = with_costs(job, [outcome(1.0)], lambda digest: job.model, Journal(tmp_path), SILENT)

    assert (found.passed, found.reason) == (False, "the child died")


def test_energy_is_refused_before_any_work_where_there_is_no_counter(tmp_path):
    with pytest.raises(EngineError, match="choose another goal"):
        check_goal("energy", counters=tmp_path)


@pytest.mark.parametrize("goal", [goal for goal in GOALS if goal != "energy"])
def test_other_goals_need_no_counter(goal):
    assert check_goal(goal) is None


def test_costs_are_shown_in_their_unit():
    assert show_cost("cold_start", Interval(0.3149, 0, 1)) == "cold start 0.315 s"
    assert show_cost("energy", Interval(0.0021, 0, 1)) == "energy 0.0021 J"


def test_a_search_for_a_fast_start_measures_starts(cnn, data, trials, tmp_path, monkeypatch):
    monkeypatch.setattr(goals, "RUNS", 1)

    result = optimize(
        cnn, data, require=["accuracy drop <= 0.2"], goal="cold_start", trials=trials,
        out=tmp_path / "best",
    )  # fmt: skip

    assert result.chosen.cost.value > 0
    assert "cold start" in result.chosen.reason
    assert all(o.cost is not None for o in result.outcomes if o.passed)


def test_a_search_for_throughput_counts_the_rows_that_are_judged(cnn, data, trials, tmp_path):
    result = optimize(
        cnn, data, require=["accuracy drop <= 0.2"], goal="throughput", trials=trials,
        out=tmp_path / "best",
    )  # fmt: skip

    assert "rows/s" in result.chosen.reason
    held = [o for o in result.outcomes if o.passed]
    assert result.chosen.cost.value <= 1.02 * min(o.cost.value for o in held)


def test_forms_of_most_rows_per_second_are_also_run_side_by_side(job):
    many = replace(job, goal="throughput")
    one = outcome(1.0)
    two = replace(one, trial=Trial(one.trial.recipe, EngineConfig("openvino", threads=2)))

    found = more_streams(many, Judged((one, two), one, "accuracy", "batch 1"), SILENT)

    assert [(t.config.threads, t.config.streams) for t in found] == [(2, 2)]
    assert more_streams(job, Judged((two,), two, "accuracy", "batch 1"), SILENT) == ()
