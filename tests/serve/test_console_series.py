import pytest
from outside import Clock

from ingot.observe.stats import Stats
from ingot.serve.console.charts import svg_path
from ingot.serve.console.endpoints import _worker_chart
from ingot.serve.console.series import StatsSource
from ingot.serve.metrics import Metrics

WALL = 5000.0  # UTC seconds at the clock's zero


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(clock):
    made = Metrics()
    made.stats = Stats(clock=clock, wall=lambda: WALL + clock.now)
    return made


@pytest.fixture
def source(metrics, clock):
    return StatsSource(metrics, clock=lambda: WALL + clock.now)


def look(source, clock, seconds=2.0):
    clock.now += seconds
    source.look()


def test_a_window_has_what_was_counted_in_its_ten_seconds(source, metrics, clock):
    series = metrics.series("digits", "3")
    series.count(200, 0.0015)
    clock.now += 10
    for status in (200, 200, 400, 503):
        series.count(status, 0.0015)
    clock.now += 10

    first, second = source.windows("digits", "3")
    assert (first.start, first.seconds, first.requests, first.errors) == (6000.0, 10.0, 1, 0)
    assert (second.start, second.requests, second.errors) == (6010.0, 4, 1)
    assert second.by_status == {200: 2, 400: 1, 503: 1}
    assert (second.rate_per_s, second.error_share) == (0.4, 0.25)


def test_a_window_that_is_not_over_counts_now_and_is_no_point_of_a_chart(source, metrics, clock):
    metrics.series("digits", "3").count(200, 0.0015)
    clock.now += 4

    assert source.windows("digits", "3") == []
    assert source.over("digits", "3", 60.0).requests == 1


def test_quantiles_are_within_one_percent_of_the_exact_ones(source, metrics, clock):
    series = metrics.series("digits", "3")
    for i in range(1, 1001):
        series.count(200, i / 1e4)  # 0.1 to 100 ms: the p95 is between 95.0 and 95.1
    clock.now += 10

    (window,) = source.windows("digits", "3")
    assert window.p50_ms == pytest.approx(50.0, rel=0.012)
    assert window.p95_ms == pytest.approx(95.0, rel=0.012)
    assert window.p99_ms == pytest.approx(99.0, rel=0.012)


def test_a_window_without_requests_has_no_quantiles(source, clock):
    clock.now += 10

    (window,) = source.windows("digits", "3")
    assert (window.requests, window.p50_ms, window.error_share) == (0, None, 0.0)


def test_windows_are_joined_by_their_requests_and_not_by_their_quantiles(source, metrics, clock):
    series = metrics.series("digits", "3")
    for _ in range(30):
        series.count(200, 0.0015)
    clock.now += 10
    for _ in range(10):
        series.count(200, 0.015)
    clock.now += 10

    joined = source.over("digits", "3", 60.0)
    assert (joined.requests, joined.seconds) == (40, 20.0)
    assert joined.p50_ms == pytest.approx(1.5, rel=0.01)
    assert joined.p95_ms == pytest.approx(15, rel=0.01)


def test_what_ended_before_is_not_joined(source, metrics, clock):
    metrics.series("digits", "3").count(200, 0.001)
    clock.now += 100

    assert source.over("digits", "3", 60.0).requests == 0


def test_a_stream_that_has_a_window_does_not_get_it_again(source, clock):
    clock.now += 30
    had = round(source.windows("digits", "3")[1].end, 3)

    assert [one.end for one in source.windows("digits", "3", since=had)] == [6030.0]


def test_versions_and_arms_are_counted_apart(source, metrics, clock):
    series = metrics.series("digits", "2")
    series.count(200, 0.001, "2")
    series.count(503, 0.001, "pinned")
    metrics.series("digits", "3")
    clock.now += 10

    assert source.over("digits", "2", 60.0).requests == 2
    assert source.over("digits", "2", 60.0, arm="2").by_status == {200: 1}
    assert source.windows("digits", "2", arm="pinned")[0].errors == 1
    assert source.over("digits", "3", 60.0).requests == 0


def test_an_hour_of_workers_is_kept(source, metrics, clock):
    metrics.series("digits", "3").count(200, 0.001)
    for _ in range(1805):
        look(source, clock)

    assert len(source.levels("digits", "3")) == 1800


def test_totals_have_statuses_batches_and_workers(source, metrics, clock):
    series = metrics.series("digits", "3")
    series.watch("ingot_workers_ready", "Words.", lambda: 2, kind="gauge")
    series.watch("ingot_worker_restarts", "Words.", lambda: 5, kind="counter")
    series.count(200, 0.001)
    for rows, reason in ((1, "waited"), (3, "waited"), (8, "full"), (8, "full")):
        metrics.count_batch("digits", "3", rows, reason=reason)
    look(source, clock)

    totals = source.totals("digits", "3")
    assert (totals.requests, totals.statuses) == (1, {200: 1})
    assert {bound: n for bound, n in totals.rows.items() if n} == {"1": 1, "4": 1, "8": 2}
    assert totals.reasons == {"waited": 2, "full": 2}
    assert (totals.workers_ready, totals.restarts) == (2, 5)


def test_restarts_are_shown_where_they_happened(source, metrics, clock):
    restarts = 3
    metrics.series("digits", "3").watch(
        "ingot_worker_restarts", "Words.", lambda: restarts, kind="counter"
    )
    look(source, clock)
    restarts = 4
    look(source, clock)
    chart = _worker_chart(source.levels("digits", "3"), since=0.0)

    assert chart.times == (6002.0, 6004.0)
    assert chart.lines[1].values == (0.0, 1.0)


def test_a_path_holds_its_values_where_it_is_stepped():
    assert svg_path([0, 2], 2.0, width=10, height=10, is_stepped=True) == "M0 10H10L10 0"


def test_a_path_of_one_value_and_of_none_is_no_error():
    assert svg_path([], 0.0) == ""
    assert svg_path([0.0], 0.0, width=10, height=10) == "M0 10"


def test_a_long_path_is_thinned_and_keeps_its_peak():
    values = [0.0] * 1000
    values[501] = 7.0

    path = svg_path(values, 7.0, width=100, height=70)

    assert path.count("L") < 300
    assert " 0" in path.replace("70", "")
