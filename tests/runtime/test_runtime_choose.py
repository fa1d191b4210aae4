"""Choosing: agreement first, halving, goals, the cache; on engines whose costs are written down."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_engines import QUIET, FakeClock, FakeEngine

from ingot.core.errors import EngineError
from ingot.core.files import home
from ingot.runtime import choose as room
from ingot.runtime.agreement import relative_error
from ingot.runtime.choose import Choice, choose
from ingot.runtime.energy import EnergyCounter
from ingot.runtime.engine import EngineConfig
from ingot.runtime.measure import Shape

HERE = {"cpu": "test"}
ONE = (Shape(1),)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def _choose(model, clock, *engines, **options) -> Choice:
    given = {"shapes": ONE, "machine": HERE, "budget_s": 1e9, "meter": QUIET} | options
    return choose([model], engines={e.name: e for e in engines}, clock=clock, **given)


def _ort(clock: FakeClock, cost: float = 0.2, **options) -> FakeEngine:
    return FakeEngine("onnxruntime", clock, {"fp32": cost}, **options)


def test_the_fastest_configuration_wins(cnn, clock):
    other = FakeEngine("other", clock, {"fp32": 0.3, "bf16": 0.1})
    choice = _choose(cnn, clock, _ort(clock), other)

    assert choice.config == EngineConfig("other", "bf16", 0)
    assert choice.model == cnn.digest
    assert choice.measurements[0].label == "other bf16 xall"


def test_clearly_slower_configurations_get_only_the_short_measurement(cnn, clock):
    slow, fast = FakeEngine("slow", clock, {"fp32": 0.4}), _ort(clock, 0.1)
    choice = _choose(cnn, clock, fast, slow)

    assert clock.log.count("slow fp32") < 100 < clock.log.count("onnxruntime fp32")
    assert "clearly slower: 400 ms against 100 ms" in choice.excluded["slow fp32 xall"]
    assert [m.label for m in choice.measurements] == ["onnxruntime fp32 xall"]


def test_equals_are_both_measured_in_full(cnn, clock):
    choice = _choose(cnn, clock, _ort(clock), FakeEngine("other", clock, {"fp32": 0.2}))

    assert {m.n for m in choice.measurements} == {200}
    assert len(choice.measurements) == 2


def test_a_fast_configuration_that_answers_nan_is_left_out(cnn, clock):
    wrong = FakeEngine(
        "wrong", clock, {"bf16": 0.01}, answers={"bf16": np.full(4, np.nan, np.float32)}
    )
    choice = _choose(cnn, clock, _ort(clock), wrong)

    assert choice.config.engine == "onnxruntime"
    assert "off by inf" in choice.excluded["wrong bf16 xall"]


def test_small_differences_are_kept_and_reported(cnn, clock):
    close = FakeEngine(
        "close", clock, {"bf16": 0.1}, answers={"bf16": np.full(4, 1.01, np.float32)}
    )
    choice = _choose(cnn, clock, _ort(clock), close)

    assert choice.config.engine == "close"
    assert choice.errors["close bf16 xall"] == pytest.approx(0.01, rel=1e-3)


def test_an_engine_that_refuses_is_left_out_with_its_reason(cnn, clock):
    refusing = FakeEngine("refusing", clock, {"fp32": "operator Foo at node n1"})
    choice = _choose(cnn, clock, _ort(clock), refusing)

    assert choice.excluded["refusing fp32 xall"] == "operator Foo at node n1"


def test_no_engine_at_all_is_an_error_with_each_reason(cnn, clock):
    refusing = FakeEngine("refusing", clock, {"fp32": "operator Foo at node n1"})
    absent = FakeEngine("absent", clock, {"fp32": 1.0}, missing="not installed")

    with pytest.raises(
        EngineError, match="absent: not installed; refusing fp32 xall: operator Foo"
    ):
        _choose(cnn, clock, refusing, absent)


def test_precisions_and_threads_limit_what_is_tried(cnn, clock):
    engine = FakeEngine("onnxruntime", clock, {"fp32": 0.2, "bf16": 0.1})
    choice = _choose(cnn, clock, engine, precisions=["fp32"], threads=(1, 2))

    assert {m.label for m in choice.measurements} == {"onnxruntime fp32 x1", "onnxruntime fp32 x2"}


def test_a_second_call_reads_the_cache(cnn, clock):
    engine = _ort(clock)
    first = _choose(cnn, clock, engine)
    opened = engine.opened
    second = _choose(cnn, clock, engine)

    assert engine.opened == opened
    assert (first.from_cache, second.from_cache) == (False, True)
    assert second.config == first.config
    assert second.measurements == first.measurements


@pytest.mark.parametrize(
    "change",
    [{"machine": {"cpu": "other"}}, {"shapes": (Shape(2),)}, {"goal": "size"}, {"threads": (1,)}],
)
def test_another_machine_or_question_misses_the_cache(cnn, clock, change):
    engine = _ort(clock)
    _choose(cnn, clock, engine)

    assert not _choose(cnn, clock, engine, **change).from_cache


def test_the_cache_can_be_left_alone(cnn, clock):
    _choose(cnn, clock, _ort(clock), use_cache=False)

    assert not (home() / "cache").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", json.dumps({"model": 1}).encode()])
def test_a_broken_cache_is_measured_again(cnn, clock, content):
    engine = _ort(clock)
    _choose(cnn, clock, engine)
    (path,) = (home() / "cache" / "choose").iterdir()
    path.write_bytes(content)

    assert not _choose(cnn, clock, engine).from_cache
    assert _choose(cnn, clock, engine).from_cache


def test_goal_size_takes_the_smaller_model_even_if_it_is_slower(cnn, encoder, clock, tmp_path):
    big = type(cnn)(tmp_path / "big", "sha256:01", cnn.signature, cnn.lineage, "big")
    big.path.mkdir()
    big.onnx_path.write_bytes(b"0" * (cnn.size_bytes + 1))
    choice = choose(
        [big, cnn], shapes=ONE, goal="size", engines={"onnxruntime": _ort(clock)}, clock=clock,
        machine=HERE, budget_s=1e9,
    )  # fmt: skip

    assert choice.model == cnn.digest


@pytest.mark.parametrize("goal", ["memory", "cold_start"])
def test_process_goals_ask_a_fresh_process(cnn, clock, goal, monkeypatch):
    cost = {"onnxruntime": 1.0, "other": 2.0}
    monkeypatch.setitem(room._PROCESS, goal, lambda _, config: cost[config.engine])
    choice = _choose(
        cnn, clock, _ort(clock, 0.2), FakeEngine("other", clock, {"fp32": 0.1}), goal=goal
    )

    assert choice.config.engine == "onnxruntime"


def test_goal_energy_is_refused_where_there_is_no_counter(cnn, clock, monkeypatch):
    monkeypatch.setattr(EnergyCounter, "find", _no_counter)

    with pytest.raises(EngineError, match="no counter here"):
        _choose(cnn, clock, _ort(clock), goal="energy")


def test_goal_energy_takes_who_needs_the_fewest_joules_even_if_it_is_slower(
    cnn, clock, monkeypatch
):
    joules = iter([(3.0, 2.0, 3.0), (1.0, 1.0, 9.0)])  # in the order of the candidates
    monkeypatch.setattr(EnergyCounter, "find", lambda *_: EnergyCounter((), ()))
    monkeypatch.setattr(room, "energy_per_call", lambda *_, runs: next(joules))
    fast, slow = (
        FakeEngine("fast", clock, {"fp32": 0.1}),
        FakeEngine("slow", clock, {"fp32": 0.105}),
    )

    choice = _choose(cnn, clock, fast, slow, goal="energy")

    assert choice.config.engine == "slow"


def test_an_unknown_goal_is_refused_with_the_nearest(cnn, clock):
    with pytest.raises(EngineError, match="latency"):
        _choose(cnn, clock, _ort(clock), goal="latncy")


def _no_counter(*_):
    raise EngineError("no counter here")


def test_goal_throughput_counts_rows(cnn, clock):
    choice = _choose(cnn, clock, _ort(clock), shapes=(Shape(1), Shape(4)), goal="throughput")

    assert [m.items_per_s for m in choice.measurements] == pytest.approx([5, 20])


def test_without_the_reference_engine_only_finiteness_is_asked(cnn, clock):
    choice = _choose(cnn, clock, FakeEngine("other", clock, {"fp32": 0.2}))

    assert choice.errors == {"other fp32 xall": 0.0}


def test_choose_refuses_an_empty_question(clock):
    with pytest.raises(EngineError, match="a model and a shape; got 0 models"):
        choose([], shapes=ONE)


def test_relative_error_is_the_worst_output():
    reference = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}

    assert relative_error(reference, {"a": np.array([3.0, 4.5]), "b": np.array([1.2])}) == (
        pytest.approx(0.2)
    )


@pytest.mark.parametrize("got", [{}, {"y": np.zeros(3)}, {"y": np.array([np.inf, 0.0])}])
def test_missing_misshapen_or_infinite_outputs_are_infinitely_wrong(got):
    assert relative_error({"y": np.ones(2)}, got) == float("inf")


def test_zeros_agree_only_with_zeros():
    zero = {"y": np.zeros(2)}

    assert relative_error(zero, zero) == 0.0
    assert relative_error(zero, {"y": np.ones(2)}) == float("inf")


def test_a_real_engine_is_chosen_for_a_real_model(cnn, images):
    pytest.importorskip("ingot.runtime.engines")
    from ingot.runtime.engines import engines

    choice = choose(
        [cnn], shapes=ONE, engines={"onnxruntime": engines()["onnxruntime"]}, precisions=["fp32"],
        threads=(1,), sample={"image": images[0]}, budget_s=0.01,
    )  # fmt: skip

    assert choice.config == EngineConfig("onnxruntime", "fp32", 1)
    assert choice.measurements[0].p50_ms > 0
    assert Path(home() / "cache" / "choose").is_dir()
