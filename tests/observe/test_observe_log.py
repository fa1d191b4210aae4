import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest

from ingot.observe import log as log_module
from ingot.observe.log import ObservationLog
from ingot.observe.observation import Observation
from ingot.observe.reading import Summary

FULL = Observation(
    "r1", 12.5, "digits", "sha256:v", "user", "b", 0.25, "act", "in", "out", 503, 1.5,
    "curl", "eu", 7, "cat", 0.9, 0.1, True, "dog", 1.0, "ep", 3,
)  # fmt: skip
PLAIN = Observation("r2", 13.5, "digits", "sha256:v")


@pytest.fixture
def log(tmp_path):
    with ObservationLog(tmp_path / "observations.sqlite") as opened:
        yield opened


def test_what_was_recorded_comes_back_field_by_field(log):
    log.record(FULL)
    log.record(PLAIN)

    assert list(log.read()) == [FULL, PLAIN]


def test_read_selects_by_time_and_endpoint(log):
    other = replace(PLAIN, endpoint="faces", time=20.0)
    for observation in (FULL, PLAIN, other):
        log.record(observation)

    assert list(log.read(since=13.5)) == [PLAIN, other]
    assert list(log.read(endpoint="faces")) == [other]
    assert list(log.read(since=14.0, endpoint="digits")) == []


def test_everything_is_on_disk_after_close(tmp_path):
    log = ObservationLog(tmp_path / "o.sqlite")
    for i in range(100):
        log.record(replace(PLAIN, request_id=str(i)))
    log.close()
    log.close()

    assert [o.request_id for o in log.read()] == [str(i) for i in range(100)]
    assert log.dropped == 0


def test_a_full_queue_drops_and_counts(tmp_path):
    with ObservationLog(tmp_path / "o.sqlite", capacity=2, flush_s=0.5) as log:
        with log._write_lock:
            for _ in range(5):
                log.record(PLAIN)

        assert log.dropped == 3
        assert len(list(log.read())) == 2


def test_recording_after_close_drops_and_counts(tmp_path):
    log = ObservationLog(tmp_path / "o.sqlite")
    log.close()

    log.record(PLAIN)

    assert log.dropped == 1


@pytest.mark.parametrize(
    "bad", [{"latency_ms": float("nan")}, {"step": 2**70}, {"request_id": "\ud800"}]
)
def test_an_observation_that_cannot_be_stored_does_not_take_others_with_it(log, bad):
    for observation in (FULL, replace(PLAIN, **bad), PLAIN):
        log.record(observation)

    assert list(log.read()) == [FULL, PLAIN]
    assert log.dropped == 1


def test_summary_counts_statuses_and_takes_nearest_ranks(log):
    for i in range(1, 21):
        log.record(replace(PLAIN, latency_ms=float(i), status=500 if i > 18 else 200))
    log.record(replace(PLAIN, endpoint="faces", latency_ms=1000.0))

    assert log.summary("digits") == Summary(
        "digits", 20, {200: 18, 500: 2}, 10.0, 19.0, 20.0, rows=20
    )


def test_summary_of_an_endpoint_without_requests_has_no_latency(log):
    assert log.summary("digits") == Summary("digits", 0, {}, None, None, None)


@pytest.mark.parametrize("options", [{"capacity": 0}, {"flush_s": 0.0}, {"flush_s": 1.0}])
def test_options_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="needs capacity >= 1"):
        ObservationLog(tmp_path / "o.sqlite", **options)


def test_a_killed_process_keeps_what_the_thread_flushed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from ingot.observe.log import ObservationLog\n"
        "from ingot.observe.observation import Observation\n"
        "log = ObservationLog(Path(sys.argv[1]), flush_s=0.05)\n"
        "log.record(Observation('r', 1.0, 'digits', 'v'))\n"
        "while log._pending: time.sleep(0.01)\n"
        "log._write_lock.acquire(); print('flushed', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "o.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "flushed\n"
        os.kill(process.pid, signal.SIGKILL)

    with ObservationLog(tmp_path / "o.sqlite") as log:
        assert [o.request_id for o in log.read()] == ["r"]


def test_a_full_disk_drops_batches_with_one_warning_each_and_the_log_goes_on(tmp_path, caplog):
    with ObservationLog(tmp_path / "log.sqlite", flush_s=0.5) as log:
        pages = log._db.execute("PRAGMA page_count").fetchone()[0]
        log._db.execute(f"PRAGMA max_page_count = {pages}")
        for i in range(200):
            log.record(Observation(f"r{i}" * 50, 1.0, "digits", "sha256:v"))
        log.flush()
        dropped, warnings = log.dropped, len(caplog.records)
        log._db.execute("PRAGMA max_page_count = 100000")
        log.record(Observation("after", 2.0, "digits", "sha256:v"))

        assert dropped == 200
        assert 1 <= warnings <= 2  # one per batch, and the thread may have taken a batch of its own
        assert [found.request_id for found in log.read()] == ["after"]


def test_a_log_that_is_removed_begins_anew(log, caplog):
    log.record(PLAIN)
    log.flush()
    for file in log.path.parent.glob(log.path.name + "*"):
        file.unlink()
    log.record(FULL)

    assert list(log.read()) == [FULL]
    assert log.dropped == 0
    assert "begins anew" in caplog.text


def test_a_folder_that_is_replaced_by_a_file_keeps_observations_in_the_queue(tmp_path):
    folder = tmp_path / "logs"
    with ObservationLog(folder / "o.sqlite", capacity=2) as log:
        folder.rename(tmp_path / "gone")
        folder.write_text("not a folder")
        for _ in range(3):
            log.record(PLAIN)
            log.flush()
        folder.unlink()

        assert [row.request_id for row in log.read()] == ["r2", "r2"]
        assert log.dropped == 1


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """Give a log, and a connection that keeps everybody else from writing it."""
    monkeypatch.setattr(log_module, "_BUSY_MS", 1)
    monkeypatch.setattr(log_module, "_CLOSE_S", 0.02)
    with (
        ObservationLog(tmp_path / "o.sqlite", capacity=2) as log,
        closing(sqlite3.connect(log.path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        yield log, other


def test_a_locked_log_keeps_its_queue_and_counts_what_does_not_fit(locked):
    log, other = locked
    for name in "abc":
        log.record(replace(PLAIN, request_id=name))
        log.flush()

    assert log.dropped == 1
    other.execute("COMMIT")
    assert [row.request_id for row in log.read()] == ["a", "b"]


def test_a_locked_log_can_be_closed(locked, caplog):
    log, _ = locked
    log.record(PLAIN)

    log.close()

    assert "1 observations were not stored: the file is locked" in caplog.text


def test_a_locked_log_can_be_opened(locked):
    log, _ = locked

    with ObservationLog(log.path) as second:
        assert second.dropped == 0
