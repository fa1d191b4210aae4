from dataclasses import replace

import numpy as np
import pytest

from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.core.errors import EngineError
from ingot.evaluate.evidence import Interval
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.search import crosscheck
from ingot.search.crosscheck import name_fault, settle
from ingot.search.job import Job
from ingot.search.trial import Outcome, Trial


def outcome(model, latency, *, engine="openvino", passed=True, observer="mse"):
    p50, score = (Interval(v, v, v) for v in (latency, 0.9))
    trial = Trial(
        Recipe((QuantizeStatic(observer=observer),)), EngineConfig(engine, "fp32", threads=1)
    )
    return Outcome(trial, model.digest, 100, p50, 0.0, score, None, passed, reason="holds")


@pytest.fixture
def small(cnn, data):
    return Recipe((QuantizeStatic(),)).apply(cnn, data)


class Wrong:
    """A session whose first output is off by a factor."""

    def __init__(self, session):
        self.session = session

    def run(self, feeds):
        return {name: value * 2 for name, value in self.session.run(feeds).items()}

    def close(self):
        self.session.close()


@pytest.fixture
def broken_openvino(monkeypatch):
    def opened(model, config, **options):
        session = open_session(model, replace(config, engine="onnxruntime"), **options)
        return Wrong(session) if config.engine == "openvino" else session

    monkeypatch.setattr(crosscheck, "open_session", opened)
    monkeypatch.setattr("ingot.evaluate.diagnose.open_session", opened)


def test_a_candidate_that_two_engines_read_alike_is_kept(cnn, data, small):
    outcomes = [outcome(small, 1.0)]

    marked, chosen = settle(Job(cnn, data, ()), outcomes, lambda digest: small)

    assert chosen is marked[0]
    assert chosen.passed


def test_a_candidate_that_engines_read_differently_is_refused(cnn, data, small, broken_openvino):
    outcomes = [outcome(small, 1.0), outcome(small, 2.0, engine="onnxruntime")]

    marked, chosen = settle(Job(cnn, data, ()), outcomes, lambda digest: small)

    assert chosen is marked[1]
    assert marked[0].passed is False
    assert "onnxruntime and openvino must give the same answers from one file" in marked[0].reason
    assert "differ by 1 of their size (at most 0.3)" in marked[0].reason
    assert "The first node that differs is" in marked[0].reason


def test_no_candidate_is_left_when_engines_agree_on_none(cnn, data, small, broken_openvino):
    assert settle(Job(cnn, data, ()), [outcome(small, 1.0)], lambda digest: small)[1] is None


def test_a_file_that_no_second_engine_runs_is_kept(cnn, data, small, monkeypatch):
    def opened(model, config, **options):
        raise EngineError("no")

    monkeypatch.setattr(crosscheck, "open_session", opened)

    assert settle(Job(cnn, data, ()), [outcome(small, 1.0)], lambda digest: small)[1] is not None


def test_the_fault_of_the_fastest_broken_candidate_is_named(cnn, data, small):
    outcomes = [outcome(small, 2.0), outcome(small, 1.0, passed=False, observer="entropy")]

    (sentence,) = name_fault(Job(cnn, data, ()), outcomes, lambda digest: small)

    assert outcomes[1].trial.label in sentence
    assert "breaks a claim. Most of the error is made at" in sentence


def test_where_nothing_is_broken_no_fault_is_named(cnn, data, small):
    assert name_fault(Job(cnn, data, ()), [outcome(small, 1.0)], lambda digest: small) == ()


def test_answers_are_compared_on_few_examples(cnn, data, small, monkeypatch):
    rows = []

    def counted(session, feeds, **options):
        rows.append(len(next(iter(feeds.values()))))
        return {"logits": np.ones((rows[-1], 4))}

    monkeypatch.setattr(crosscheck, "run_rows", counted)
    settle(Job(cnn, data, ()), [outcome(small, 1.0)], lambda digest: small)

    assert rows == [8, 8]
