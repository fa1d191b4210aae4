import sqlite3
from functools import partial

import pytest

from ingot.serve.jobs import disks, sqlite_schema
from ingot.serve.jobs.job import JobState, NewJob, RetryPolicy, StoreError
from ingot.serve.jobs.sqlite_store import SqliteJobStore
from ingot.testing.check_job_store import check_job_store
from ingot.testing.job_bench import new_job
from ingot.testing.kill_jobs import kill_jobs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.sqlite"


def opener(folder):
    def open_store(name, *, clock, retry, max_queued):
        file = folder / f"{name}.sqlite"
        return SqliteJobStore(file, clock=clock, retry=retry, max_queued=max_queued)

    return open_store


def test_the_sqlite_driver_keeps_the_contract(tmp_path):
    check_job_store(opener(tmp_path))


def test_nothing_is_lost_and_nothing_completes_twice_under_sigkill(tmp_path, path):
    SqliteJobStore(path).close()
    open_store = partial(SqliteJobStore, path, is_first=False)

    found = kill_jobs(open_store, tmp_path, jobs=60, kills=6, work_s=0.02, seed=1)

    assert (found.lost, found.twice, found.kills) == (0, 0, 6)
    assert found.control_kills >= 1


def test_a_store_that_hands_jobs_out_twice_is_found_out(tmp_path):
    class Careless(SqliteJobStore):
        def complete(self, lease, **more):
            super().complete(lease, **more)
            return True

    def open_store(name, *, clock, retry, max_queued):
        return Careless(tmp_path / name, clock=clock, retry=retry, max_queued=max_queued)

    with pytest.raises(AssertionError, match="must not complete"):
        check_job_store(open_store)


@pytest.mark.parametrize("kind", ["NFS", "SMB2", "FUSE", "9P"])
def test_a_network_disk_is_refused_before_a_file_is_made(path, monkeypatch, kind):
    magic = next(number for number, name in disks._NETWORK.items() if name == kind)
    monkeypatch.setattr(disks, "file_system", lambda folder: magic)

    with pytest.raises(StoreError, match=rf"local disk; .* is on {kind}"):
        SqliteJobStore(path)

    assert not path.exists()


def test_the_file_system_of_a_folder_is_what_the_kernel_says(tmp_path):
    found = disks.file_system(tmp_path)

    assert found == 0 or disks.network_name(found) is None
    with pytest.raises(StoreError, match="No such file"):
        disks.file_system(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_corrupt_file_is_refused_and_left_as_it_was(path, content):
    path.write_bytes(content)

    with pytest.raises(StoreError, match="Nothing was changed or deleted"):
        SqliteJobStore(path)

    assert path.read_bytes() == content


def test_a_damaged_page_is_found_at_the_start(path):
    with_jobs(path, 200)
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 12 * 4096] = b"\xaa" * (9 * 4096)
    path.write_bytes(content)

    with pytest.raises(StoreError, match="must be a whole SQLite file"):
        SqliteJobStore(path)

    assert path.read_bytes() == content


def test_somebody_elses_database_is_refused(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")

    with pytest.raises(StoreError, match="holds other tables"):
        SqliteJobStore(path)


def test_a_file_of_a_later_version_is_refused(path, monkeypatch):
    SqliteJobStore(path).close()
    monkeypatch.setattr(sqlite_schema, "SCHEMA_VERSION", 3)

    with pytest.raises(StoreError, match="format 3"):
        SqliteJobStore(path)


def test_a_full_disk_refuses_the_new_job_and_keeps_the_old(path):
    store = SqliteJobStore(path)
    store.put([new_job("kept")])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StoreError, match="full"):
        store.put([NewJob("big", "model", "", b"x" * 100_000)])

    assert store.get("big") is None
    assert store.get("kept").state is JobState.QUEUED
    store.close()


def test_full_and_normal_durability_are_what_sqlite_is_told(path):
    levels = {}
    for durability in ("NORMAL", "FULL"):
        store = SqliteJobStore(path, durability=durability)
        levels[durability] = store._db.execute("PRAGMA synchronous").fetchone()[0]
        store.close()

    assert levels == {"NORMAL": 1, "FULL": 2}


def test_the_body_of_a_success_is_dropped_and_of_a_dead_letter_kept(path):
    store = SqliteJobStore(path)
    store.put([new_job("good"), new_job("bad")])
    good, bad = store.claim("model", "me", n=2, lease_s=9)
    store.complete(good)
    store.fail(bad, "no", retry=False)

    assert store._db.execute("SELECT body FROM bodies").fetchall() == [(b"bad",)]
    store.close()


def test_back_off_grows_to_its_cap_and_is_spread():
    policy = RetryPolicy(base_s=1.0, factor=2.0, cap_s=10.0)

    waits = [[policy.wait_s(f"job{i}", tries) for i in range(200)] for tries in (1, 2, 3, 9)]

    for found, full in zip(waits, (1.0, 2.0, 4.0, 10.0), strict=True):
        assert full / 2 <= min(found) < 0.55 * full
        assert 0.95 * full < max(found) <= full
    assert policy.wait_s("a", 0) == 0.0


def with_jobs(path, n):
    store = SqliteJobStore(path)
    store.put([new_job(f"j{i}") for i in range(n)])
    store.close()


class Forgetful(SqliteJobStore):
    """A driver that drops what a dead owner held."""

    def lapse(self, owner, *, blame=True):
        self._db.execute("DELETE FROM jobs WHERE owner = ? AND state = 'running'", (owner,))
        return 0

    def put(self, jobs):
        return super().put(jobs) if self.counts("killed")[JobState.SUCCEEDED] < 5 else jobs


def test_the_kill_test_finds_a_driver_that_loses_jobs(tmp_path, path):
    SqliteJobStore(path).close()
    open_store = partial(Forgetful, path, is_first=False)

    with pytest.raises(AssertionError, match="must go on"):
        kill_jobs(open_store, tmp_path, jobs=30, kills=6, work_s=0.02, patience_s=3.0)
