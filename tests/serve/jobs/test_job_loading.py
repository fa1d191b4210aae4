"""Instances that hang while they load: they are ended, the reason is shown, and no job is lost."""

import os
import signal
from contextlib import closing
from dataclasses import replace

import httpx
import pytest
from job_sessions import open_stuck
from job_words import JOBS, request_of
from outside import wait_for

from ingot.core.errors import ServeError
from ingot.serve.jobs import supervisor
from ingot.serve.jobs.decisions import DecisionLog
from ingot.serve.jobs.job import JobState
from ingot.serve.jobs.server import serve_jobs_in_thread


@pytest.fixture
def stuck(endpoint):
    return endpoint.model.path / "stuck"


@pytest.fixture
def impatient(endpoint, settings, monkeypatch):
    monkeypatch.setattr(supervisor, "_LONGEST_BACK_OFF_S", 0.1)
    with serve_jobs_in_thread(endpoint, replace(settings, open_session=open_stuck)) as running:
        running.supervisor._endpoint = replace(endpoint, load_timeout_s=1.0)
        yield running


def page(running, path):
    return httpx.get(running.url + path, trust_env=False, timeout=20)


def put(running):
    answer = httpx.post(running.url + JOBS, json=request_of(1.0, 2.0), trust_env=False)
    assert answer.status_code == 202, answer.text
    return answer.json()["job"]


def fail_to_load(running, stuck):
    """Return once the endpoint says that its instances hang."""
    wait_for(lambda: running.supervisor.instances == 0)
    stuck.touch()
    job = put(running)
    wait_for(lambda: page(running, "/v2/health/ready").status_code == 503)
    return job


def test_an_instance_that_hangs_in_loading_is_no_endpoint_and_says_so(endpoint, settings, stuck):
    stuck.touch()
    slow = replace(endpoint, load_timeout_s=0.3)
    with pytest.raises(ServeError, match=r"got: nothing within 0\.3 s"):
        serve_jobs_in_thread(slow, replace(settings, open_session=open_stuck))

    with closing(DecisionLog(settings.folder / "scaling.sqlite")) as decisions:
        rows = decisions.read(endpoint.version.name)
    assert [(row.action, row.instances) for row in rows] == [("start", 1), ("died", 0)]
    assert rows[-1].reason == "nothing within 0.3 s"


def test_a_job_whose_instances_hang_in_loading_waits_and_is_answered_later(impatient, stuck):
    job = fail_to_load(impatient, stuck)
    reason = page(impatient, "/v2/health/ready").json()["reason"]
    rows = page(impatient, "/v2/models/doubler/scaling").json()["decisions"]
    waiting = impatient.desk.store.get(job)
    stuck.unlink()
    wait_for(lambda: impatient.desk.store.get(job).state is JobState.SUCCEEDED)
    ready = page(impatient, "/v2/health/ready")

    assert "it answered no inference within 1 s" in reason
    assert reason in [row["reason"] for row in rows if row["action"] == "died"]
    assert (waiting.state, waiting.attempt) == (JobState.QUEUED, 0)
    assert ready.json() == {"ready": True}


def test_an_endpoint_without_jobs_becomes_ready_again_by_itself(impatient, stuck):
    job = fail_to_load(impatient, stuck)
    impatient.desk.store.cancel(job)
    refused = httpx.post(impatient.url + JOBS, json=request_of(1.0, 2.0), trust_env=False)
    stuck.unlink()
    wait_for(lambda: page(impatient, "/v2/health/ready").status_code == 200)

    assert refused.status_code == 503
    assert put(impatient)


def test_an_instance_that_loads_ends_at_once_with_its_supervisor(impatient, stuck, monkeypatch):
    monkeypatch.setattr(impatient.supervisor, "_endpoint", replace(
        impatient.desk.endpoint, load_timeout_s=600.0))  # fmt: skip
    wait_for(lambda: impatient.supervisor.instances == 0)
    stuck.touch()
    put(impatient)
    (pid,) = wait_for(lambda: impatient.supervisor.pids)
    os.kill(pid, 0)
    impatient.supervisor._active[0].child.link.close()

    wait_for(lambda: is_gone(pid))


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_instance_outlives_its_template_and_the_next_is_forked_by_a_new_one(impatient):
    put(impatient)
    wait_for(lambda: impatient.supervisor.pids)
    os.kill(impatient.supervisor._nursery._template[1].pid, signal.SIGKILL)
    jobs = [put(impatient) for _ in range(3)]
    wait_for(lambda: impatient.supervisor.instances == 0)
    jobs.append(put(impatient))

    store = impatient.desk.store
    wait_for(lambda: all(store.get(job).state is JobState.SUCCEEDED for job in jobs))


def test_an_instance_that_cannot_be_started_for_a_while_is_started_later(impatient, monkeypatch):
    failures, real = [OSError(11, "Resource temporarily unavailable")] * 2, supervisor.Child

    def poor(*values):
        if failures:
            raise failures.pop()
        return real(*values)

    wait_for(lambda: impatient.supervisor.instances == 0)
    monkeypatch.setattr(supervisor, "Child", poor)
    job = put(impatient)
    wait_for(lambda: "temporarily unavailable" in impatient.supervisor.trouble)
    wait_for(lambda: impatient.desk.store.get(job).state is JobState.SUCCEEDED)

    assert impatient.supervisor.trouble == ""


def test_a_function_of_the_script_that_runs_cannot_open_sessions(settings):
    def opener(endpoint):
        raise AssertionError

    opener.__module__ = "__main__"

    with pytest.raises(ServeError, match="must be a function of a module"):
        replace(settings, open_session=opener)
