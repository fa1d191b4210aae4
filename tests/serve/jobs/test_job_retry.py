"""Dead jobs that are put back: over HTTP, by the client, in the store, and as it is told."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_sessions import BREAK
from job_words import JOBS, request_of

from ingot.observe.reading import read_log
from ingot.serve.jobs.client import JobClient, RefusedError
from ingot.serve.jobs.job import Job, JobState, RetryPolicy, StoreError
from ingot.serve.jobs.moves import Moves
from ingot.serve.jobs.notify import Notifier, event_of
from ingot.serve.jobs.sqlite_store import SqliteJobStore
from ingot.testing.check_job_store import check_job_store
from ingot.testing.job_bench import ManualClock, new_job


@pytest.fixture
def broken(web, end_of, inputs):
    """Return a job that is dead, and what mends its input."""
    path = inputs / "order.json"
    path.write_text("no request")
    job = web.post(JOBS, json={"input_uri": str(path)}).json()["job"]
    assert end_of(job)["state"] == "dead"
    return job, lambda: path.write_text(json.dumps(request_of(1.0, 2.0)))


def retry(web, job):
    return web.post(f"{JOBS}/{job}/retry")


def test_a_dead_job_succeeds_once_its_input_is_mended(web, end_of, broken):
    job, mend = broken
    mend()
    answer = retry(web, job)
    ended = end_of(job)
    result = web.get(f"{JOBS}/{job}/result").json()

    assert (answer.status_code, answer.json()["job"]) == (200, job)
    assert answer.json()["failures"] == 0
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    assert "Open Inference Protocol" in ended["note"]  # why it had died
    assert result["outputs"][0]["data"] == [2.0, 4.0]


def test_a_job_that_is_not_mended_dies_again(web, end_of, broken):
    job, _ = broken
    retry(web, job)
    ended = end_of(job)

    assert (ended["state"], ended["attempt"], ended["failures"]) == ("dead", 2, 1)


def test_a_job_that_is_not_dead_is_409_and_an_unknown_one_404(web, end_of):
    job = web.post(JOBS, json=request_of(1.0, 2.0)).json()["job"]
    end_of(job)
    succeeded, unknown = retry(web, job), retry(web, "nobody")

    assert (succeeded.status_code, unknown.status_code) == (409, 404)
    assert "this one is succeeded. Nothing was done. Put it anew." in succeeded.json()["detail"]
    assert succeeded.headers["content-type"] == "application/problem+json"
    assert web.get(f"{JOBS}/{job}").json()["state"] == "succeeded"


def test_a_retry_that_is_refused_leaves_no_observation(serving, web, end_of, endpoint):
    job = web.post(JOBS, json=request_of(1.0, 2.0)).json()["job"]
    end_of(job)
    retry(web, job)
    retry(web, "nobody")
    serving.stop()

    assert [row.request_id for row in read_log(endpoint.log)] == [job]


def test_a_job_that_is_put_back_wakes_an_endpoint_without_instances(
    serving, web, broken, monkeypatch
):
    job, _ = broken
    woken = []
    monkeypatch.setattr(serving.desk, "_wake", lambda: woken.append(serving.desk.store.get(job)))
    retry(web, job)
    retry(web, "nobody")

    assert [found.id for found in woken] == [job]


def test_a_store_that_cannot_be_changed_is_503(web, broken, serving, monkeypatch):
    job, _ = broken

    def fail(jobs):
        raise StoreError("secret place")

    monkeypatch.setattr(serving.desk.store, "requeue", fail)
    answer = retry(web, job)

    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_the_client_finds_all_the_dead_page_by_page_and_retries_one(
    serving, end_of, broken, monkeypatch
):
    monkeypatch.setattr("ingot.serve.jobs.client._PAGE", 1)
    client = JobClient(serving.url, "doubler")
    job, mend = broken
    other = client.submit(request_of(BREAK, 1.0))["job"]
    end_of(other)
    mend()
    dead = client.dead()
    client.retry(job)

    assert dead == [job, other]
    assert end_of(job)["state"] == "succeeded"
    assert client.dead() == [other]
    with pytest.raises(RefusedError, match="once it is dead") as caught:
        client.retry(job)
    assert caught.value.status == 409


def job_that(state: JobState, attempt: int) -> Job:
    return Job("j", "m", state, attempt, 0, 0, 1.0, 1.0, 1.0, "o", "", "", "", 0, "", "")


def test_a_second_death_is_another_event_than_the_first():
    first, second = (event_of(job_that(JobState.DEAD, attempt))["id"] for attempt in (1, 2))

    assert first != second


def test_a_notice_of_a_death_that_is_taken_back_is_not_sent(tmp_path, monkeypatch):
    store = SqliteJobStore(tmp_path / "jobs.sqlite")
    store.put([new_job("j1", notify="http://127.0.0.1:9/")])
    store.fail(store.claim("model", "me", n=1, lease_s=9.0)[0], "no", retry=False)
    notifier = Notifier(store, b"key", allowed=("127.0.0.0/8",))
    taken = store.notices("n", n=1, lease_s=9.0)
    store.requeue(["j1"])
    sent = []
    monkeypatch.setattr(notifier, "_post", lambda *words: sent.append(words) or 200)
    monkeypatch.setattr(store, "notices", lambda *_, **__: taken)
    notifier.tell()
    notifier.close()
    kept = store.get("j1")
    store.close()

    assert sent == []
    assert (kept.state, kept.notice) == (JobState.QUEUED, "")


STEP = st.tuples(
    st.sampled_from(["claim", "complete", "fail", "lapse", "requeue", "cancel", "pass"]),
    st.integers(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=15, max_size=40))
def test_whatever_happens_no_job_completes_twice_and_counts_are_right(steps):
    time, done, leases, late = ManualClock(), Counter(), [], []
    names = ["j0", "j1"]
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteJobStore(
            Path(folder) / "jobs.sqlite",
            clock=time.clock(),
            retry=RetryPolicy(max_failures=1, max_lapses=1),
        )
        store.put([new_job(name) for name in names])
        for step, i in steps:
            if step == "claim":
                leases += store.claim("model", f"owner{i}", n=1, lease_s=10.0)
            elif step == "complete":
                ended = [lease for lease in leases if store.complete(lease)]
                done.update(lease.job for lease in ended)
                late += [lease for lease in ended if lease is not last_of(leases, lease.job)]
            elif step == "fail" and leases:
                store.fail(leases[-1 - i % len(leases)], "no")
            elif step == "lapse":
                store.lapse(f"owner{i}")
            elif step == "requeue":
                store.requeue(names)
            elif step == "cancel":
                store.cancel(names[i])
            else:
                time.pass_s(11.0)
        counts = store.counts("model")
        states = Counter(store.get(name).state for name in names)
        store.close()

    assert late == []  # nobody but the last holder of a job ends it
    assert all(times == 1 for times in done.values())
    assert counts == {state: states[state] for state in JobState}
    assert states[JobState.SUCCEEDED] == len(done)


def last_of(leases, job):
    return [lease for lease in leases if lease.job == job][-1]


def revive_with(**columns):
    """Return a `revive` that also changes some columns, which no driver may."""

    def revive(self, job):
        was_dead = REVIVE(self, job)
        for column, value in columns.items():
            self._db.execute(f"UPDATE jobs SET {column} = ? WHERE id = ?", (value, job))
        return was_dead

    return revive


REVIVE = Moves.revive


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"attempt": 0}, "must have its tries, and count on"),
        ({"failures": 3}, "must have its tries"),
        ({"ended": 9.0}, "must have its tries"),
        ({"note": ""}, "must say why it had died"),
        ({"state": "dead"}, "must have its tries"),
        ({"expires": 0.0}, "must be able to|hand out the one due job"),
        ({"notice": "pending"}, "has no end to tell"),
        ({"notice_tries": 4}, "tries must count anew"),
    ],
)
def test_a_store_that_puts_jobs_back_wrongly_is_found_out(tmp_path, monkeypatch, columns, rule):
    monkeypatch.setattr(Moves, "revive", revive_with(**columns))

    def open_store(name, *, clock, retry, max_queued):
        return SqliteJobStore(tmp_path / name, clock=clock, retry=retry, max_queued=max_queued)

    with pytest.raises(AssertionError, match=rule):
        check_job_store(open_store)
