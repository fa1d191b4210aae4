from dataclasses import replace

import pytest

from ingot.observe.log import ObservationLog
from ingot.observe.observation import Observation
from ingot.observe.reading import Selection, read_after, read_newest, summarize

ONE = Observation("r", 1.0, "digits", "sha256:aa")


@pytest.fixture
def log(tmp_path):
    with ObservationLog(tmp_path / "o.sqlite") as opened:
        yield opened


def put(log, rows):
    for row in rows:
        log.record(row)
    log.flush()


def test_summaries_are_per_endpoint_and_version(log):
    rows = [ONE, replace(ONE, version="sha256:bb"), replace(ONE, endpoint="faces")]
    put(log, [*rows, ONE])

    found = [(s.endpoint, s.version, s.requests) for s in summarize(log.path)]

    assert found == [("digits", "sha256:aa", 2), ("digits", "sha256:bb", 1),
                     ("faces", "sha256:aa", 1)]  # fmt: skip


def test_a_summary_counts_sampled_requests_for_those_left_out(log):
    # nine fast requests of which a third was kept, and one slow error
    put(log, [replace(ONE, latency_ms=1.0, inclusion=1 / 3)] * 3
        + [replace(ONE, latency_ms=90.0, status=500)])  # fmt: skip

    (found,) = summarize(log.path)

    assert (found.requests, found.rows) == (10, 4)
    assert found.by_status == {200: 9, 500: 1}
    assert (found.p50_ms, found.p95_ms) == (1.0, 90.0)


def test_the_newest_rows_come_in_order_of_arrival(log):
    put(log, [replace(ONE, request_id=str(i), time=float(-i)) for i in range(10)])

    assert [row.request_id for row in read_newest(log.path, 3)[1]] == ["7", "8", "9"]
    assert read_newest(log.path, 3, Selection("faces")) == (10, [])


def test_reading_on_gives_only_what_came_since(log):
    put(log, [ONE])
    at, _ = read_newest(log.path, 1)
    put(log, [replace(ONE, request_id="new"), replace(ONE, endpoint="faces")])

    at, found = read_after(log.path, at, Selection("digits"))

    assert [row.request_id for row in found] == ["new"]
    assert read_after(log.path, at, Selection("digits")) == (at, [])
