import random
from dataclasses import dataclass

import pytest

from ingot.observe.stats import ACCURACY, Key, Stats

A, B = Key("digits", "1"), Key("digits", "2")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stats(clock):
    return Stats(width_s=10.0, keep_s=60.0, clock=clock, wall=lambda: clock.now + 1e6)


def exact(values, fraction):
    """Return the value at the rank that DDSketch promises: the floor of q (n - 1)."""
    return sorted(values)[int(fraction * (len(values) - 1))]


LAWS = {
    "log-normal": lambda r: r.lognormvariate(1.0, 2.0),
    "uniform": lambda r: r.uniform(0.05, 60_000.0),
    "two humps": lambda r: r.gauss(2.0, 0.1) if r.random() < 0.94 else r.gauss(900.0, 50.0),
    "heavy tail": lambda r: r.paretovariate(0.7),
    "constant": lambda _: 3.25,
}


@pytest.mark.parametrize("law", LAWS)
def test_quantiles_over_merged_windows_are_within_the_error_of_the_exact_ones(stats, clock, law):
    rng = random.Random(7)
    values = [LAWS[law](rng) for _ in range(5000)]
    for i, value in enumerate(values):
        clock.now = 1000.0 + 50.0 * i / len(values)
        stats.add(A, 200, value)

    found = stats.over(60.0)

    for fraction, value in ((0.50, found.p50_ms), (0.95, found.p95_ms), (0.99, found.p99_ms)):
        assert value == pytest.approx(exact(values, fraction), rel=ACCURACY)


def test_windows_come_in_order_with_the_empty_ones(stats, clock):
    stats.add(A, 200, 5.0)
    clock.now = 1025.0
    stats.add(A, 500, 7.0)

    found = stats.windows()

    assert [(w.start - 1e6, w.seconds, w.requests, w.errors) for w in found] == [
        (1000.0, 10.0, 1, 0), (1010.0, 10.0, 0, 0), (1020.0, 5.0, 1, 1),
    ]  # fmt: skip
    assert [w.p50_ms is None for w in found] == [False, True, False]


def test_windows_begin_where_asked(stats, clock):
    clock.now = 1045.0

    assert [w.start - 1e6 for w in stats.windows(1e6 + 1031.0)] == [1030.0, 1040.0]


def test_the_rate_counts_the_seconds_that_passed(stats, clock):
    for _ in range(30):
        stats.add(A, 200, 1.0)
    clock.now = 1015.0

    assert stats.over(60.0).rate_per_s == 2.0


def test_statuses_are_counted_and_errors_are_the_servers(stats):
    for status in (200, 200, 404, 500, 503):
        stats.add(A, status, 1.0)

    found = stats.over(10.0)

    assert found.by_status == {200: 2, 404: 1, 500: 1, 503: 1}
    assert (found.requests, found.errors) == (5, 2)


def test_old_windows_are_forgotten_and_memory_is_bounded(stats, clock):
    for second in range(500):
        clock.now = 1000.0 + second
        stats.add(A, 200, 1.0)

    assert len(stats._buckets[A]) == 6
    assert stats.over(1e9).requests == 60
    clock.now += 100.0
    assert stats.over(1e9).requests == 0


def test_figures_are_told_apart_by_model_version_and_arm(stats):
    stats.add(A, 200, 1.0)
    stats.add(B, 200, 1.0)
    stats.add(B._replace(arm="canary"), 200, 1.0)
    stats.add(Key("faces", "1"), 200, 1.0)

    assert stats.over(10.0).requests == 4
    assert stats.over(10.0, model="digits").requests == 3
    assert stats.over(10.0, model="digits", version="2").requests == 2
    assert stats.over(10.0, version="2", arm="canary").requests == 1
    assert stats.keys == [A, B._replace(arm="canary"), B, Key("faces", "1")]


def test_a_row_that_stands_for_several_counts_as_several(stats):
    stats.add(A, 200, 1.0, weight=9)
    stats.add(A, 500, 50.0)

    found = stats.over(10.0)

    assert (found.requests, found.by_status) == (10, {200: 9, 500: 1})
    assert found.p50_ms == pytest.approx(1.0, rel=ACCURACY)


def test_the_open_window_goes_on_after_it_was_read(stats):
    stats.add(A, 200, 1.0)
    before = stats.windows()[-1]
    stats.add(A, 200, 100.0)

    (after,) = stats.windows()

    assert (before.requests, after.requests) == (1, 2)
    assert before.p99_ms == pytest.approx(1.0, rel=ACCURACY)
    assert stats.over(10.0).p99_ms == after.p99_ms


def test_nothing_served_has_no_quantiles(stats):
    found = stats.over(10.0)

    assert (found.requests, found.p50_ms, found.p99_ms, found.rate_per_s) == (0, None, None, 0.0)


def test_reading_changes_nothing(stats):
    stats.add(A, 200, 1.0)
    stats.add(B, 200, 100.0)

    assert stats.over(10.0) == stats.over(10.0)
    assert stats.over(10.0, version="1").p99_ms == pytest.approx(1.0, rel=ACCURACY)


def test_a_window_has_a_json_form(stats):
    stats.add(A, 200, 0.0)

    assert stats.over(10.0).to_json() == {
        "start": 1001000.0, "seconds": 0.0, "requests": 1, "errors": 0, "by_status": {"200": 1},
        "rate_per_s": 0.0, "p50_ms": 0, "p95_ms": 0, "p99_ms": 0,
    }  # fmt: skip
