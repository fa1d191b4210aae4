import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import httpx
import pytest
from job_sessions import BREAK, HANG, KILL, SLEEP
from job_words import JOBS, request_of
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp_collector import collecting
from outside import wait_for

from ingot.observe.reading import read_log
from ingot.observe.rules import LogRules
from ingot.serve import tracing as tracing_module
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access, Tracing
from ingot.serve.jobs import sqlite_schema
from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.ends import End, Ends
from ingot.serve.jobs.job import JobState, NewJob, RetryPolicy
from ingot.serve.jobs.origin import Origin, read_origin
from ingot.serve.jobs.server import serve_jobs_in_thread
from ingot.serve.jobs.sqlite_store import SqliteJobStore
from ingot.serve.problems import RequestError
from ingot.testing.job_bench import new_job

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def submit(web, *values, headers=None, **more):
    return web.post(JOBS, json=request_of(*values) | more, headers=headers).json()["job"]


def seen(endpoint):
    return {row.request_id: row for row in read_log(endpoint.log)}


def test_a_job_that_is_tried_again_leaves_one_observation_of_its_last_attempt(
    serving, web, end_of, endpoint
):
    job = submit(web, BREAK, 1.0)
    ended = end_of(job)
    serving.stop()

    rows = [row for row in read_log(endpoint.log) if row.request_id == job]
    assert ended["failures"] > 1
    assert [row.status for row in rows] == [500]


def test_a_job_that_kills_its_instances_leaves_an_observation(serving, web, end_of, endpoint):
    job = submit(web, KILL, 1.0)
    assert end_of(job)["state"] == "dead"
    serving.stop()

    assert seen(endpoint)[job].status == 500


def test_a_job_that_hangs_in_the_engine_leaves_an_observation(endpoint, settings):
    once = replace(settings, retry=replace(settings.retry, max_failures=1), lease_s=0.6)
    with (
        serve_jobs_in_thread(endpoint, once) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as web,
    ):
        job = submit(web, HANG, 1.0, timeout_s=0.1)
        wait_for(lambda: running.desk.store.get(job).state is JobState.DEAD)

    assert seen(endpoint)[job].status == 504


def test_a_cancelled_job_leaves_an_observation(serving, web, endpoint):
    job = submit(web, SLEEP, 1.0)
    web.delete(f"{JOBS}/{job}")
    serving.stop()

    assert [(row.request_id, row.status) for row in read_log(endpoint.log)] == [(job, 499)]


def test_a_job_that_nobody_started_in_time_is_told_of_once(tmp_path):
    now, told = [0.0], []
    clock = Clock(lambda: now[0], lambda: now[0], "boot")
    store = SqliteJobStore(tmp_path / "jobs.sqlite", clock=clock, on_end=told.append)
    store.put([replace(new_job("late"), ttl_s=5.0), new_job("kept")])
    now[0] = 6.0

    for _ in range(2):
        store.claim(new_job("late").endpoint, "me", n=1, lease_s=1.0)

    assert [(job.id, job.state) for job in told] == [("late", JobState.EXPIRED)]


def test_what_a_failed_transaction_moved_is_not_told(tmp_path, monkeypatch):
    told = []
    store = SqliteJobStore(tmp_path / "jobs.sqlite", on_end=told.append)
    store.put([new_job("a"), new_job("b")])
    store._moves.end_unanswered = lambda seq, state: (
        type(store._moves).end_unanswered(store._moves, seq, state), 1 / 0)  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        store.cancel("a")
    del store._moves.end_unanswered

    store.cancel("b")

    assert [job.id for job in told] == ["b"]
    assert store.get("a").state is JobState.QUEUED


def test_an_answered_job_is_not_told_of_by_the_store(tmp_path):
    told = []
    retry = RetryPolicy(max_failures=1)
    store = SqliteJobStore(tmp_path / "jobs.sqlite", retry=retry, on_end=told.append)
    store.put([new_job("done"), new_job("failed")])
    done, failed = store.claim(new_job("done").endpoint, "me", n=2, lease_s=9.0)

    assert store.complete(done)
    assert store.fail(failed, "no") is JobState.DEAD
    assert told == []


def test_observations_say_who_put_a_job_and_why(endpoint, settings, tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite")
    key, _ = store.create("robot", ["infer:doubler"])
    guarded = replace(endpoint, access=Access(keys=store._path))
    headers = {"authorization": f"Bearer {key}", "ingot-unit": "ada", "ingot-episode": "e7",
               "ingot-step": "3"}  # fmt: skip
    with (
        serve_jobs_in_thread(guarded, settings) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as web,
    ):
        job = submit(web, 1.0, 1.0, headers=headers)
        wait_for(lambda: running.desk.store.get(job).state is JobState.SUCCEEDED)

    row = seen(endpoint)[job]
    assert (row.unit_key, row.episode_id, row.step, row.client) == ("ada", "e7", 3, "robot")
    assert row.status == 200
    assert row.latency_ms > 0
    assert key.encode() not in (settings.folder / "jobs.sqlite").read_bytes()


def test_a_request_that_becomes_no_job_leaves_an_observation(serving, web, endpoint):
    web.post(JOBS, json={"inputs": []}, headers={"ingot-unit": "ada"})
    web.post(JOBS, content=b"x" * 200_000)
    web.get(f"{JOBS}/nobody")
    serving.stop()

    rows = [(row.status, row.unit_key) for row in read_log(endpoint.log)]
    assert rows == [(400, "ada"), (413, "")]


@pytest.mark.parametrize("headers", [{"ingot-unit": "two words"}, {"ingot-step": "-1"}])
def test_a_label_that_is_none_is_refused(web, headers):
    answer = web.post(JOBS, json=request_of(1.0, 1.0), headers=headers)

    assert answer.status_code == 400
    assert f"Header {next(iter(headers))} must be" in answer.json()["error"]


def test_an_origin_goes_through_a_store_and_bad_parents_are_left_out():
    given = {"ingot-unit": "u", "traceparent": PARENT}

    assert Origin.of(read_origin(given, "c").to_text()) == Origin("u", client="c",
                                                                  traceparent=PARENT)  # fmt: skip
    assert read_origin({"traceparent": "nonsense"}, "") == Origin()
    assert Origin().to_text() == ""
    with pytest.raises(RequestError):
        read_origin({"ingot-episode": "x" * 129}, "")


def test_a_job_store_of_the_first_format_opens_and_keeps_its_jobs(tmp_path):
    path = tmp_path / "jobs.sqlite"
    now = list(sqlite_schema.SQLITE.statements())
    tables = [text.replace(",\n        origin TEXT NOT NULL DEFAULT ''", "") for text in now]
    assert tables != now
    with closing(sqlite3.connect(path)) as db:
        for statement in tables:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {sqlite_schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        db.execute(
            "INSERT INTO jobs (id, endpoint, state, due, expires, request, output, input_uri,"
            " caller_id, ttl_s, timeout_s, created)"
            " VALUES ('old', 'e', 'queued', 0, 1e12, 'r', 'o', '', '', 9, 9, 0)"
        )
        db.commit()

    store = SqliteJobStore(path)
    store.put([replace(new_job("new"), origin="x")])

    assert store.get("old").origin == ""
    assert store.get("new").origin == "x"


def test_the_spans_of_a_job_are_in_the_trace_of_the_request_that_put_it(
    endpoint, settings, monkeypatch
):
    opened = []  # one of the server's requests, one of the ends of its jobs

    def open_exporter(_url):
        opened.append(InMemorySpanExporter())
        return opened[-1]

    monkeypatch.setattr(tracing_module, "open_exporter", open_exporter)
    traced = replace(endpoint, tracing=Tracing("http://127.0.0.1:1"))
    with (
        serve_jobs_in_thread(traced, settings) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as web,
    ):
        job = submit(web, SLEEP, 1.0, headers={"traceparent": PARENT})
        parent = Origin.of(running.desk.store.get(job).origin).traceparent
        web.delete(f"{JOBS}/{job}")  # its end is observed in this process

    put, ended = (
        next(s for here in opened for s in here.get_finished_spans() if s.name == name)
        for name in ("POST /v2/models/{name}/jobs", "ingot.job")
    )
    assert f"{put.context.trace_id:032x}" == PARENT[3:35]
    assert parent == f"00-{PARENT[3:35]}-{put.context.span_id:016x}-01"
    assert ended.context.trace_id == put.context.trace_id
    assert ended.parent.span_id == ended.links[0].context.span_id == put.context.span_id
    assert ended.attributes["ingot.job"] == job
    assert ended.attributes["http.response.status_code"] == 499


def test_an_instance_sends_the_spans_of_its_jobs(endpoint, settings):
    with collecting() as collector:
        traced = replace(endpoint, tracing=Tracing(collector.url))
        with (
            serve_jobs_in_thread(traced, settings) as running,
            httpx.Client(base_url=running.url, trust_env=False, timeout=20) as web,
        ):
            job = submit(web, SLEEP, 1.0, headers={"traceparent": PARENT})
            wait_for(lambda: running.desk.store.get(job).state is JobState.SUCCEEDED)

        spans = {span.name: span for span in collector.spans}

    assert {"POST /v2/models/{name}/jobs", "ingot.job", "ingot.wait", "ingot.run"} == set(spans)
    assert {span.trace_id.hex() for span in spans.values()} == {PARENT[3:35]}
    run = spans["ingot.run"]
    assert run.end_time_unix_nano - run.start_time_unix_nano >= 0.4e9  # what the model sleeps


def test_an_instance_keeps_to_the_rules_of_the_log(endpoint, settings):
    ruled = replace(endpoint, log_rules=LogRules(redact={"unit_key": "drop"}))
    with (
        serve_jobs_in_thread(ruled, settings) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as web,
    ):
        job = submit(web, 1.0, 1.0, headers={"ingot-unit": "ada", "ingot-episode": "e"})
        wait_for(lambda: running.desk.store.get(job).state is JobState.SUCCEEDED)

    row = seen(endpoint)[job]
    assert (row.unit_key, row.episode_id) == ("", "e")


def test_an_end_has_its_wait_and_its_run_where_an_attempt_is_known(endpoint, monkeypatch):
    here = InMemorySpanExporter()
    monkeypatch.setattr(tracing_module, "open_exporter", lambda _: here)
    ends = Ends(replace(endpoint, log=None, tracing=Tracing("http://127.0.0.1:1")))
    now = time.time()

    ends.note(End("j", now - 3.0, 200, Origin(traceparent=PARENT).to_text(), began=now - 1.0))
    ends.close()

    spans = {span.name: span for span in here.get_finished_spans()}
    assert set(spans) == {"ingot.job", "ingot.wait", "ingot.run"}
    waited = spans["ingot.wait"].end_time - spans["ingot.wait"].start_time
    assert waited == pytest.approx(2e9, rel=0.01)
    assert spans["ingot.wait"].parent.span_id == spans["ingot.job"].context.span_id


def test_stats_of_jobs_come_from_the_log(serving, web, end_of):
    end_of(submit(web, 1.0, 1.0))
    end_of(submit(web, BREAK, 1.0))

    def figures():
        rows = web.get("/v2/models/doubler/stats").json()["versions"]
        return rows and rows[0]["requests"] == 2 and rows[0]

    row = wait_for(figures, 10.0)
    assert row["by_status"] == {"200": 1, "500": 1}
    assert row["errors"] == 1
    assert row["p99_ms"] > 0


def test_a_log_that_cannot_be_opened_costs_the_record_and_not_the_jobs(
    endpoint, settings, tmp_path
):
    (tmp_path / "log.sqlite").write_bytes(b"this is no database, but some text" * 100)
    with serve_jobs_in_thread(endpoint, settings) as running:
        body = json.dumps(request_of(1.0, 2.0)).encode()
        running.desk.store.put([NewJob("j", "doubler", f"{settings.output}/j", body)])

        wait_for(lambda: running.desk.store.get("j").state is JobState.SUCCEEDED)
