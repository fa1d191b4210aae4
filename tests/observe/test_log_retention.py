import sqlite3
import time
from contextlib import closing
from dataclasses import replace

from ingot.observe.log import ObservationLog
from ingot.observe.observation import Observation
from ingot.observe.reading import count_lost, read_log
from ingot.observe.retention import used_bytes
from ingot.observe.rules import LogRules
from ingot.observe.table import NAMES

ONE = Observation("r", 1.0, "digits", "sha256:v")
MIB = 1024 * 1024


def fill(log, n, first=0, **more):
    for i in range(first, first + n):
        log.record(replace(ONE, request_id=f"{i:06d}" + "x" * 300, time=float(i), **more))
        if i % 5000 == 0:
            log.flush()
    log.flush()


def wait_until(claim, timeout_s=20.0):
    until = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_rows_older_than_the_age_go_for_every_endpoint(tmp_path):
    rules = LogRules(max_age_s=100.0)
    with ObservationLog(tmp_path / "o.sqlite", rules=rules, clock=lambda: 200.0) as log:
        for endpoint in ("a", "b"):
            fill(log, 200, endpoint=endpoint)
        wait_until(lambda: len(list(log.read())) == 200)

        assert {(row.endpoint, row.time) for row in log.read()} == {
            (endpoint, float(t)) for endpoint in ("a", "b") for t in range(100, 200)
        }


def test_the_oldest_go_first_when_the_file_is_too_large(tmp_path):
    with ObservationLog(tmp_path / "o.sqlite", rules=LogRules(max_bytes=MIB)) as log:
        fill(log, 6000)
        wait_until(lambda: used_bytes(log._db) <= MIB)
        rows = [int(row.request_id[:6]) for row in log.read()]

    assert rows
    assert rows == list(range(rows[0], 6000))


def test_the_file_shrinks_when_rows_go(tmp_path):
    path = tmp_path / "o.sqlite"
    with ObservationLog(path) as log:
        fill(log, 8000)
    large = path.stat().st_size
    with ObservationLog(path, rules=LogRules(max_bytes=MIB)) as log:
        wait_until(lambda: used_bytes(log._db) <= MIB)
        wait_until(lambda: log.prune() == 0)

    assert large > 3 * MIB
    assert path.stat().st_size < 1.5 * MIB


def test_what_is_recorded_meanwhile_is_kept(tmp_path):
    with ObservationLog(tmp_path / "o.sqlite", rules=LogRules(max_bytes=MIB)) as log:
        fill(log, 9000)
        log.record(replace(ONE, request_id="newest", time=1e6))
        wait_until(lambda: used_bytes(log._db) <= MIB)

        assert [row.request_id for row in log.read()][-1] == "newest"


def test_without_rules_nothing_goes(tmp_path):
    with ObservationLog(tmp_path / "o.sqlite") as log:
        fill(log, 50)

        assert log.prune() == 0
        assert len(list(log.read())) == 50


def make_old_file(path):
    """Write a log without the newest column and tables."""
    old = [name for name in NAMES if name != "inclusion"]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE observations (id INTEGER PRIMARY KEY, {', '.join(old)})")
        values = [getattr(ONE, name) for name in old]
        marks = ", ".join("?" for _ in old)
        db.execute(f"INSERT INTO observations ({', '.join(old)}) VALUES ({marks})", values)


def test_a_log_of_an_older_version_opens_and_gets_what_it_lacks(tmp_path):
    make_old_file(tmp_path / "o.sqlite")

    with ObservationLog(tmp_path / "o.sqlite") as log:
        log.record(replace(ONE, time=2.0, inclusion=0.5))

        assert list(log.read()) == [ONE, replace(ONE, time=2.0, inclusion=0.5)]


def test_a_log_of_an_older_version_is_read_as_it_is(tmp_path):
    path = tmp_path / "o.sqlite"
    make_old_file(path)

    assert list(read_log(path)) == [ONE]
    assert count_lost(path) == 0
    with closing(sqlite3.connect(path)) as db:
        assert "inclusion" not in [row[1] for row in db.execute("PRAGMA table_info(observations)")]


def test_losses_are_counted_on_disk_by_the_hour(tmp_path):
    with ObservationLog(tmp_path / "o.sqlite", capacity=2, clock=lambda: 7200.0) as log:
        with log._write_lock:
            for _ in range(5):
                log.record(ONE)
        log.flush()

    assert count_lost(tmp_path / "o.sqlite") == 3
