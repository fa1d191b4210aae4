import pytest

from ingot.serve.console.charts import svg_path
from ingot.serve.console.series import MetricsSource, quantile
from ingot.serve.metrics import Metrics


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def source(metrics, clock):
    return MetricsSource(metrics, clock=clock)


def look(source, clock, seconds=2.0):
    clock.now += seconds
    source.look()


def test_a_window_has_what_was_counted_since_the_look_before(source, metrics, clock):
    series = metrics.series("digits", "3")
    series.count(200, 0.0015)
    look(source, clock)
    for status in (200, 200, 400, 503):
        series.count(status, 0.0015)
    look(source, clock)

    first, second = source.windows("digits", "3")
    assert (first.start, first.seconds, first.requests, first.errors) == (1000.0, 2.0, 1, 0)
    assert (second.start, second.requests, second.errors) == (1002.0, 4, 1)
    assert second.statuses == {200: 2, 400: 1, 503: 1}
    assert (second.requests_per_s, second.error_share) == (2.0, 0.25)


def test_quantiles_are_interpolated_in_their_bucket(source, metrics, clock):
    series = metrics.series("digits", "3")
    for _ in range(10):
        series.count(200, 0.0015)  # in the bucket from 1 to 2 ms
    look(source, clock)

    (window,) = source.windows("digits", "3")
    assert window.p50_ms == pytest.approx(1.5)
    assert window.p95_ms == pytest.approx(1.95)


def test_a_window_without_requests_has_no_quantiles(source, metrics, clock):
    metrics.series("digits", "3")
    look(source, clock)

    (window,) = source.windows("digits", "3")
    assert (window.requests, window.p50_ms, window.error_share) == (0, None, 0.0)


def test_windows_are_joined_by_their_counts_and_not_by_their_quantiles(source, metrics, clock):
    series = metrics.series("digits", "3")
    for _ in range(30):
        series.count(200, 0.0015)
    look(source, clock)
    for _ in range(10):
        series.count(200, 0.015)  # in the bucket from 10 to 20 ms
    look(source, clock)

    joined = source.over("digits", "3", 60.0)
    assert (joined.requests, joined.seconds) == (40, 4.0)
    assert joined.p50_ms == pytest.approx(1 + 20 / 30, abs=1e-3)
    assert joined.p95_ms == pytest.approx(10 + 10 * 8 / 10)


def test_what_ended_before_is_not_joined(source, metrics, clock):
    series = metrics.series("digits", "3")
    series.count(200, 0.001)
    look(source, clock)
    look(source, clock, 100.0)

    assert source.over("digits", "3", 60.0).requests == 0
    assert len(source.windows("digits", "3", since=1002.0)) == 1


def test_versions_are_counted_apart(source, metrics, clock):
    metrics.series("digits", "2").count(200, 0.001)
    metrics.series("digits", "3")
    look(source, clock)

    assert source.over("digits", "2", 60.0).requests == 1
    assert source.over("digits", "3", 60.0).requests == 0
    assert source.windows("letters", "1") == []


def test_a_clock_that_is_set_back_makes_no_window(source, metrics, clock):
    metrics.series("digits", "3").count(200, 0.001)
    look(source, clock, -500.0)
    look(source, clock)

    assert [(one.start, one.seconds) for one in source.windows("digits", "3")] == [(500.0, 2.0)]


def test_an_hour_is_kept(source, metrics, clock):
    metrics.series("digits", "3")
    for _ in range(1805):
        look(source, clock)

    assert len(source.windows("digits", "3")) == 1800


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


def test_a_restart_is_in_the_window_in_which_it_happened(source, metrics, clock):
    restarts = 0
    metrics.series("digits", "3").watch(
        "ingot_worker_restarts", "Words.", lambda: restarts, kind="counter"
    )
    look(source, clock)
    restarts = 1
    look(source, clock)

    assert [one.restarts for one in source.windows("digits", "3")] == [0, 1]


@pytest.mark.parametrize(
    ("counts", "q", "found"),
    [
        ([4, 0, 0], 0.5, 0.5),
        ([0, 4, 0], 0.25, 1.25),
        ([2, 2, 0], 1.0, 2.0),
        ([0, 0, 3], 0.5, 2.0),  # beyond the last bound: all that is known
        ([0, 0, 0], 0.5, None),
    ],
)
def test_quantile_of_a_histogram(counts, q, found):
    assert quantile([1.0, 2.0, float("inf")], counts, q) == found


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
