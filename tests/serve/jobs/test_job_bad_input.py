"""What a server of jobs meets: damaged files, clocks that are set, keys that end, slow callers."""

import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import httpx
import pytest
from job_sessions import SLEEP
from job_words import JOBS, request_of
from outside import connect, read_all, wait_for

from ingot.core.errors import IngotError, MissingExtraError
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access
from ingot.serve.jobs import places, web
from ingot.serve.jobs.clock import machine_clock
from ingot.serve.jobs.job import JobState, NewJob
from ingot.serve.jobs.server import serve_jobs_in_thread, sweep
from ingot.serve.jobs.sqlite_store import SqliteJobStore

DAY_S = 86_400.0
HEAD = b"POST /v2/models/doubler/jobs HTTP/1.1\r\ncontent-length: 90"
METADATA = ["http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/",
            "http://metadata.google.internal/", "file://169.254.169.254/etc/passwd"]  # fmt: skip


@pytest.mark.parametrize("name", ["jobs.sqlite", "scaling.sqlite", "webhook.key"])
@pytest.mark.parametrize("content", [b"SQLite format 3\0" + bytes(4080), b"no such thing" * 400])
def test_a_damaged_file_refuses_the_start_in_words_and_stays_as_it_was(
    endpoint, settings, name, content
):
    settings.folder.mkdir()
    damaged = settings.folder / name
    damaged.write_bytes(content)

    with pytest.raises(IngotError, match=name.replace(".", r"\.")):
        serve_jobs_in_thread(endpoint, settings)

    assert damaged.read_bytes() == content


def test_a_page_that_is_damaged_while_serving_is_503_and_the_server_lives(serving, web):
    serving.desk.store._db.execute("ALTER TABLE jobs RENAME TO hidden")
    answers = [web.get(JOBS), web.delete(f"{JOBS}/x"), web.post(JOBS, json=request_of(1.0, 2.0))]
    serving.desk.store._db.execute("ALTER TABLE hidden RENAME TO jobs")
    after = web.get(JOBS)

    assert [answer.status_code for answer in answers] == [503, 503, 507]
    assert {answer.headers["retry-after"] for answer in answers} == {"30"}
    assert "What was accepted is safe" in answers[0].json()["detail"]
    assert after.status_code == 200


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_clock_that_is_set_while_a_job_runs_ends_no_lease_and_no_job(tmp_path, jump_s):
    real, ahead = machine_clock(), [0.0]
    clock = replace(real, wall=lambda: real.wall() + ahead[0])
    with closing(SqliteJobStore(tmp_path / "jobs.sqlite", clock=clock)) as store:
        store.put([NewJob(name, "m", "/r", b"{}", ttl_s=60.0) for name in ("runs", "waits")])
        (held,) = store.claim("m", "one", n=1, lease_s=30.0)
        ahead[0] = jump_s
        kept = store.heartbeat([held], lease_s=30.0)
        (other,) = store.claim("m", "two", n=5, lease_s=30.0)

        assert kept == {"runs"}
        assert other.job == "waits"
        assert store.complete(held)
        assert store.complete(other)
        assert store.get("runs").lapses == store.get("waits").lapses == 0


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_jobs_are_answered_once_while_the_servers_clock_jumps(serving, web, monkeypatch, jump_s):
    jobs = [web.post(JOBS, json=request_of(SLEEP, 2.0)).json()["job"] for _ in range(3)]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump_s)
    jobs += [web.post(JOBS, json=request_of(1.0, 2.0)).json()["job"] for _ in range(3)]
    store = serving.desk.store
    wait_for(lambda: all(store.get(job).state.is_end for job in jobs))

    found = [store.get(job) for job in jobs]
    assert {job.state for job in found} == {JobState.SUCCEEDED}
    assert [job.attempt for job in found] == [1] * 6


def test_what_a_running_attempt_writes_survives_a_clock_that_is_set(settings, tmp_path):
    with closing(settings.open_store(is_first=True)) as store:
        output = f"{settings.output}/m/j.json"
        store.put([NewJob("j", "m", output, b"{}")])
        (lease,) = store.claim("m", "owner-12345678", n=1, lease_s=60.0)
        part = places._part(lease, settings.staging)
        part.parent.mkdir(parents=True)
        part.write_bytes(b"half")
        stranger = part.with_name(".gone.json.1-x.part")
        stranger.write_bytes(b"half")
        for path in (part, stranger):
            os.utime(path, (0, 0))
        sweep(store, settings)

    assert part.exists()
    assert not stranger.exists()


@pytest.mark.parametrize("uri", METADATA)
def test_a_uri_that_reaches_other_hosts_is_refused_before_anybody_is_asked(web, uri):
    as_input = web.post(JOBS, json={"input_uri": uri})

    assert as_input.status_code in {400, 403}
    assert as_input.headers["content-type"] == "application/problem+json"


def test_a_folder_below_a_root_that_leads_out_of_it_is_refused(web, inputs, tmp_path):
    (tmp_path / "secret.json").write_text(json.dumps(request_of(1.0, 2.0)))
    (inputs / "folder").symlink_to(tmp_path)

    answer = web.post(JOBS, json={"input_uri": f"{inputs}/folder/secret.json"})

    assert answer.status_code == 403


def test_an_input_that_is_gone_when_its_turn_comes_is_told_and_not_tried_again(
    serving, inputs, end_of
):
    gone = inputs / "gone.json"
    serving.desk.store.put([NewJob("j", "doubler", "/nowhere/j.json", input_uri=str(gone))])
    serving.supervisor.wake()
    ended = end_of("j")

    assert (ended["state"], ended["attempt"]) == ("dead", 1)
    assert "must be a file" in ended["error"]


def test_an_object_store_without_its_driver_refuses_the_start(endpoint, settings, monkeypatch):
    import fsspec

    def missing(scheme):
        raise ImportError(f"Install {scheme}fs to access it")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)

    with pytest.raises(MissingExtraError, match="Install s3fs"):
        serve_jobs_in_thread(endpoint, replace(settings, roots=("s3://bucket/in",)))


def test_a_stream_of_events_ends_when_its_key_does(endpoint, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "_STILL_S", 0.05)
    keys = KeyStore(tmp_path / "keys.sqlite")
    text, key = keys.create("follower", ["*"])
    locked = replace(endpoint, access=Access(tmp_path / "keys.sqlite"), drain_s=0.1)
    headers = {"authorization": f"Bearer {text}"}
    lines = []
    with serve_jobs_in_thread(locked, settings) as running:
        with httpx.Client(base_url=running.url, headers=headers, trust_env=False) as client:
            job = client.post(JOBS, json=request_of(-4.0, 2.0) | {"timeout_s": 30}).json()
            with client.stream("GET", job["events_url"], timeout=30) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    if line.startswith("data:") and not any("problem" in one for one in lines):
                        with closing(sqlite3.connect(tmp_path / "keys.sqlite")) as database:
                            database.execute("UPDATE keys SET expires = 1 WHERE id = ?", (key.id,))
                            database.commit()
        kept = running.desk.store.get(job["job"])
        running.desk.store.cancel(job["job"])

    told = json.loads(lines[lines.index("event: problem") + 1].removeprefix("data: "))
    assert (told["status"], kept.state.is_end) == (401, False)


def test_a_stream_of_events_is_not_counted_again_and_again(endpoint, settings, monkeypatch):
    from ingot.serve.endpoint import Rate

    monkeypatch.setattr(web, "_STILL_S", 0.0)
    limited = replace(endpoint, rate=Rate(0.001, burst=3))
    with serve_jobs_in_thread(limited, settings) as running:
        job = httpx.post(running.url + JOBS, json=request_of(SLEEP, 2.0), trust_env=False).json()
        told = httpx.get(running.url + job["events_url"], trust_env=False, timeout=30).text

    assert "event: succeeded" in told


@pytest.mark.parametrize("sent", [b"", b"POST /v2", HEAD, HEAD + b"\r\n\r\n{"])
def test_a_caller_of_jobs_that_sends_slowly_is_408_and_hung_up_on(endpoint, settings, sent):
    with serve_jobs_in_thread(replace(endpoint, read_timeout_s=0.3), settings) as running:
        with connect(running) as connection:
            connection.sendall(sent)
            answer = read_all(connection)
        health = httpx.get(running.url + "/v2/health/live", trust_env=False)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert health.status_code == 200


def test_a_slow_caller_does_not_hold_up_the_others(endpoint, settings):
    with serve_jobs_in_thread(replace(endpoint, read_timeout_s=5.0), settings) as running:
        slow = [connect(running) for _ in range(50)]
        for connection in slow:
            connection.sendall(HEAD)
        answer = httpx.post(running.url + JOBS, json=request_of(1.0, 2.0), trust_env=False)
        for connection in slow:
            connection.close()

    assert answer.status_code == 202
