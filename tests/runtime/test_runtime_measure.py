"""The ruler on scripted latencies: order, pairing, intervals, noise."""

import gc
import math
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from fake_engines import QUIET, FakeClock, FakeSession

from ingot.core.errors import EngineError
from ingot.core.progress import Silent
from ingot.models.model import Lineage, Model, Signature, TensorSpec
from ingot.runtime.engine import EngineConfig
from ingot.runtime.feeds import feeds_at
from ingot.runtime.measure import Candidate, Measurement, Shape, latency_ratio, measure
from ingot.runtime.noise import NoiseMeter, others_share
from ingot.runtime.quantiles import quantile_interval

ONE = {"batch 2": {"x": np.zeros((2, 3), np.float32)}}


def _model(*inputs: TensorSpec) -> Model:
    return Model(Path("m"), "sha256:00", Signature(inputs, ()), Lineage("onnx"))


def _candidates(*names: str) -> list[Candidate]:
    return [Candidate(name, _model(), EngineConfig(name)) for name in names]


def _sessions(clock: FakeClock, **costs: object):
    made = {}

    def open_session(model: Model, config: EngineConfig) -> FakeSession:
        cost = costs[config.engine]
        made[config.engine] = FakeSession(
            clock, config.engine, cost if callable(cost) else lambda _: cost
        )
        return made[config.engine]

    return open_session, made


def _run(clock: FakeClock, *, calls: int = 200, **costs: object) -> tuple[Measurement, ...]:
    open_session, _ = _sessions(clock, **costs)
    return measure(
        _candidates(*costs), ONE, calls=calls, open_session=open_session, clock=clock, meter=QUIET
    )


def test_shape_label_names_batch_and_sequence():
    assert (Shape(1, 128).label, Shape(16).label) == ("batch 1 x 128", "batch 16")


def test_every_round_times_every_candidate_once_in_changing_order():
    clock = FakeClock()
    _run(clock, a=0.05, b=0.05)
    timed = clock.log[40:]  # 20 warm-ups each
    rounds = [timed[i : i + 20] for i in range(0, len(timed), 20)]
    orders = [tuple(name for name, _ in groupby(part)) for part in rounds]

    assert len(rounds) == 20
    assert set(orders) == {("a", "b"), ("b", "a")}


def test_order_depends_on_nothing_but_the_seed():
    first, second = FakeClock(), FakeClock()
    _run(first, a=0.05, b=0.05)
    _run(second, a=0.05, b=0.05)

    assert first.log == second.log


def test_warm_up_calls_are_not_timed():
    (row,) = _run(FakeClock(), a=lambda call: 9.0 if call < 10 else 0.1)

    assert row.p95_ms == pytest.approx(100)
    assert row.n == 200


def test_fast_models_get_chunks_of_a_tenth_of_a_second():
    (row,) = _run(FakeClock(), a=0.001)

    assert row.n == pytest.approx(20 * 100, abs=20)


def test_throughput_counts_rows_per_second_of_calling():
    (row,) = _run(FakeClock(), a=0.05)

    assert row.items_per_s == pytest.approx(40)


def test_budget_stops_after_three_rounds_at_least():
    clock = FakeClock()
    open_session, _ = _sessions(clock, a=1.0)
    (row,) = measure(
        _candidates("a"), ONE, budget_s=1.0, open_session=open_session, clock=clock, meter=QUIET
    )

    assert len(row.blocks_ms) == 3
    assert row.n == 30


def test_ratio_is_paired_by_round_so_drift_cancels():
    clock = FakeClock()
    drift = lambda call: 0.02 * (1 + max(0, call - 20) // 10)  # noqa: E731 - a table in one line
    a, b = _run(clock, a=drift, b=lambda call: 2 * drift(call))
    ratio = latency_ratio(b, a)

    assert ratio.value == pytest.approx(2.0)
    assert (ratio.low, ratio.high) == pytest.approx((2.0, 2.0))
    assert ratio.n == 20
    assert max(a.blocks_ms) > 10 * min(a.blocks_ms)


def test_ratio_interval_encloses_the_median_of_the_rounds():
    rng = np.random.default_rng(0)
    a = _measurement(tuple(rng.uniform(1, 3, 20)))
    ratio = latency_ratio(a, _measurement((1.0,) * 20))

    assert ratio.value == pytest.approx(np.median(a.blocks_ms))
    assert min(a.blocks_ms) < ratio.low < ratio.value < ratio.high < max(a.blocks_ms)


def test_ratio_leaves_out_rounds_that_either_had_disturbed():
    a = _measurement((1.0, 1.0, 9.0, 1.0), quiet=(True, True, False, True))
    b = _measurement((1.0, 1.0, 1.0, 9.0), quiet=(True, True, True, False))

    assert latency_ratio(a, b) == (1.0, 1.0, 1.0, 2)


def test_ratio_refuses_measurements_from_other_rounds():
    with pytest.raises(EngineError, match="in one call of measure"):
        latency_ratio(_measurement((1.0, 1.0)), _measurement((1.0,)))


def test_sessions_are_closed_and_collection_is_back_after_a_failure():
    clock = FakeClock()

    def broken(call: int) -> float:
        if call == 25:
            assert not gc.isenabled()
            raise EngineError("call 25 failed")
        return 0.05

    open_session, made = _sessions(clock, a=0.05, b=broken)
    with pytest.raises(EngineError, match="call 25"):
        measure(_candidates("a", "b"), ONE, open_session=open_session, clock=clock, meter=QUIET)

    assert all(session.closed for session in made.values())
    assert gc.isenabled()


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_measure_refuses_no_candidates_and_equal_labels(names):
    with pytest.raises(EngineError, match="labels that differ"):
        measure(_candidates(*names), ONE)


def test_progress_is_told_about_every_round():
    class Steps(Silent):
        seen: list[float] = []  # noqa: RUF012 - one test, one list

        def step(self, message: str, done: float, total: float) -> None:
            self.seen.append(done / total)

    clock, steps = FakeClock(), Steps()
    open_session, _ = _sessions(clock, a=0.1)
    measure(
        _candidates("a"), ONE, calls=30, open_session=open_session, clock=clock,
        meter=QUIET, progress=steps,
    )  # fmt: skip

    assert steps.seen == pytest.approx([0, 1 / 3, 2 / 3])


def test_median_interval_of_ten_values_is_the_textbook_one():
    # P(2 <= B <= 8) for B ~ binomial(10, 1/2) is 1 - 2 (1 + 10) / 1024 = 0.979
    assert quantile_interval(range(1, 11), 0.5) == (5.5, 2.0, 9.0)


@pytest.mark.parametrize(("n", "known"), [(71, False), (72, True)])
def test_p95_has_an_upper_end_only_from_72_calls(n, known):
    # the largest of n values is above the 95th percentile unless 0.95^n > 0.025, i.e. n < 71.9
    _, _, high = quantile_interval(range(n), 0.95)

    assert math.isfinite(high) is known


def test_median_interval_covers_the_true_median_in_95_of_100_samples():
    rng = np.random.default_rng(1)
    truth = math.log(2)
    hits = 0
    for _ in range(400):
        _, low, high = quantile_interval(rng.exponential(size=60), 0.5)
        hits += low <= truth <= high

    assert hits / 400 >= 0.93


def test_measurement_survives_json_with_its_infinite_end():
    (row,) = _run(FakeClock(), calls=30, a=0.1)

    assert row.p95_high_ms == math.inf
    assert row.to_json()["p95_high_ms"] is None
    assert Measurement.from_json(row.to_json()) == row


class _Neighbour:
    """Writes /proc/stat as if others took a share of two cores that changes chunk by chunk."""

    def __init__(self, path: Path, clock: FakeClock, shares: list[float]) -> None:
        self.path, self.clock, self.shares = path, clock, shares
        self.reads, self.busy, self.last = 0, 0.0, 0.0

    def meter(self) -> NoiseMeter:
        return NoiseMeter(self.path, cores=(0, 1), own_s=self._own)

    def _own(self) -> float:
        return self.clock.now

    def write(self) -> None:
        now = self.clock.now
        share = self.shares[(self.reads // 2) % len(self.shares)] if self.reads % 2 else 0.0
        self.busy += (now - self.last) * (1 + 2 * share)
        self.last, self.reads = now, self.reads + 1
        idle = 2 * now - self.busy
        lines = ["cpu 0 0 0 0 0 0 0 0 0 0"]
        for busy, rest in ((self.busy, idle), (0.0, 0.0)):
            lines.append(f"cpu{len(lines) - 1} {round(busy * 100)} 0 0 {round(rest * 100)} 0 0 0 0")
        self.path.write_text("\n".join(lines))


def _with_neighbour(tmp_path: Path, shares: list[float]) -> Measurement:
    clock = FakeClock()
    neighbour = _Neighbour(tmp_path / "stat", clock, shares)

    class Meter(NoiseMeter):
        def read(self):
            neighbour.write()
            return NoiseMeter.read(self)

    base = neighbour.meter()
    meter = Meter(base.stat, base.cores, base.own_s)
    open_session, _ = _sessions(clock, a=0.1)
    return measure(_candidates("a"), ONE, open_session=open_session, clock=clock, meter=meter)[0]


def test_disturbed_chunks_are_set_aside(tmp_path):
    row = _with_neighbour(tmp_path, [0.0, 0.0, 0.0, 0.4])

    assert row.quiet == (True, True, True, False) * 5
    assert (row.n, row.noisy) == (150, False)
    assert row.noise == pytest.approx(0.1, abs=0.01)


def test_a_machine_that_is_mostly_disturbed_keeps_all_and_says_so(tmp_path):
    row = _with_neighbour(tmp_path, [0.4, 0.4, 0.0])

    assert row.noisy
    assert row.n == 200


def test_a_system_without_counters_is_not_called_quiet_or_noisy():
    (row,) = _run(FakeClock(), a=0.1)

    assert row.noise is None
    assert not row.noisy


def test_share_of_others_excludes_our_own_time_and_other_cores(tmp_path):
    stat = tmp_path / "stat"
    meter = NoiseMeter(stat, cores=(1,), own_s=lambda: 0.5)
    stat.write_text("cpu 9 9 9 9\ncpu0 500 0 0 0 0 0 0 0 0 0\ncpu1 100 20 30 800 50 0 0 0 0 0\n")
    reading = meter.read()

    assert reading == (1.5, 10.0, 0.5)
    assert others_share((0.0, 0.0, 0.0), reading) == pytest.approx(0.1)


def _measurement(blocks: tuple[float, ...], quiet: tuple[bool, ...] = ()) -> Measurement:
    kept = quiet or (True,) * len(blocks)
    return Measurement(
        "m", EngineConfig(), "batch 1", 1, 1, 1, 1, 1, 1, 1, 1, False, None, blocks, kept
    )


def test_feeds_without_a_sample_have_the_shape_and_ids_of_a_small_vocabulary(encoder):
    feeds = feeds_at(encoder, 3, 7)

    assert {k: v.shape for k, v in feeds.items()} == {
        "input_ids": (3, 7),
        "attention_mask": (3, 7),
    }
    assert feeds["input_ids"].dtype == np.int64
    assert feeds["input_ids"].min() >= 1
    assert feeds["input_ids"].max() <= 32
    assert (feeds["attention_mask"] == 1).all()


def test_feeds_from_a_sample_repeat_tokens_that_its_mask_shows(encoder):
    sample = {
        "input_ids": np.array([[5, 6, 0], [7, 0, 0]]),
        "attention_mask": np.array([[1, 1, 0], [1, 0, 0]]),
    }
    feeds = feeds_at(encoder, 3, 5, sample=sample)

    assert feeds["input_ids"].tolist() == [[5, 6, 5, 6, 5], [7] * 5, [5, 6, 5, 6, 5]]


def test_feeds_take_the_only_input_from_a_star(cnn, images):
    feeds = feeds_at(cnn, 2, sample={"*": images[0]})

    assert np.array_equal(feeds["image"], images[0][:2])


def test_feeds_ask_for_a_sequence_where_an_axis_is_dynamic(encoder):
    with pytest.raises(EngineError, match=r"128 say \(--shape 1x128\)"):
        feeds_at(encoder, 1)


def test_feeds_refuse_a_batch_that_the_model_fixes():
    model = _model(TensorSpec("x", "float32", (1, 3)))

    with pytest.raises(EngineError, match="fixed batch of 1; got batch=2"):
        feeds_at(model, 2)


def test_feeds_refuse_a_sample_without_the_input(encoder):
    with pytest.raises(EngineError, match="must hold rows for input 'input_ids'"):
        feeds_at(encoder, 1, 4, sample={"other": np.ones((1, 4))})


def test_feeds_refuse_rows_that_do_not_fit(cnn):
    with pytest.raises(EngineError, match="must fit the model's input"):
        feeds_at(cnn, 1, sample={"image": np.ones((2, 8, 8), np.float32)})


def test_random_feeds_follow_the_meaning_of_special_inputs():
    model = _model(
        TensorSpec("token_type_ids", "int64", ("batch", "sequence")),
        TensorSpec("position_ids", "int64", ("batch", "sequence")),
        TensorSpec("flag", "bool", ("batch",)),
    )
    feeds = feeds_at(model, 2, 3)

    assert not feeds["token_type_ids"].any()
    assert feeds["position_ids"].tolist() == [[0, 1, 2]] * 2
    assert feeds["flag"].all()


def test_a_real_session_is_timed_on_a_real_model(cnn):
    ort = pytest.importorskip("onnxruntime")

    class OrtSession(FakeSession):
        def __init__(self, model: Model) -> None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self.bare = ort.InferenceSession(
                model.onnx_path, options, providers=["CPUExecutionProvider"]
            )

        def run(self, feeds):
            return {"logits": self.bare.run(None, dict(feeds))[0]}

        def close(self) -> None:
            del self.bare

    shapes = (Shape(1), Shape(4))
    feeds = {shape.label: feeds_at(cnn, shape.batch) for shape in shapes}
    rows = measure(
        [Candidate("a", cnn, EngineConfig()), Candidate("b", cnn, EngineConfig())],
        feeds,
        calls=10,
        warmup=1,
        budget_s=0,
        open_session=lambda model, _: OrtSession(model),
    )

    assert [(row.label, row.shape) for row in rows] == [
        ("a", "batch 1"), ("a", "batch 4"), ("b", "batch 1"), ("b", "batch 4"),
    ]  # fmt: skip
    assert all(0 < row.p50_low_ms <= row.p50_ms <= row.p50_high_ms for row in rows)
    assert latency_ratio(rows[0], rows[2]).low > 0
