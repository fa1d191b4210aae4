"""An asynchronous endpoint as a whole: real instances, killed, broken, woken and put to sleep."""

import json
import os
import signal
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from job_sessions import BREAK, BUG, HANG, KILL, SLEEP, die_at_start, open_nothing
from job_words import JOBS, request_of
from outside import wait_for

from ingot.core.errors import ServeError
from ingot.observe.log import ObservationLog
from ingot.serve.jobs.job import JobState, NewJob
from ingot.serve.jobs.server import serve_jobs_in_thread, sweep


def submit(web, *values, **more):
    answer = web.post(JOBS, json=request_of(*values) | more)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_job_is_answered_at_the_announced_output(web, end_of):
    asked = submit(web, 1.5, 2.0)
    ended = end_of(asked["job"])

    at_output = Path(asked["output"]).read_bytes()
    over_http = web.get(ended["result_url"])

    assert ended["state"] == "succeeded"
    assert over_http.content == at_output
    assert over_http.headers["content-type"] == "application/json"
    assert over_http.json()["outputs"][0]["data"] == [3.0, 4.0]


def test_the_endpoint_goes_to_zero_and_the_next_job_wakes_it(serving, web, end_of):
    wait_for(lambda: serving.supervisor.instances == 0)
    ended = end_of(submit(web, 1.0, 2.0)["job"])

    assert ended["state"] == "succeeded"
    actions = [row["action"] for row in web.get("/v2/models/doubler/scaling").json()["decisions"]]
    assert "wake" in actions
    wait_for(lambda: serving.supervisor.instances == 0)


def test_the_record_of_a_fresh_folder_begins_with_the_instance_that_proves_the_model(web):
    first = web.get("/v2/models/doubler/scaling").json()["decisions"][0]

    assert [first[name] for name in ("action", "before", "instances")] == ["start", 0, 1]
    assert first["reason"] == "one instance proves that the model answers"


def test_a_long_queue_brings_more_instances_and_never_more_than_the_most(serving, web):
    jobs = [submit(web, SLEEP, 1.0)["job"] for _ in range(14)]

    wait_for(lambda: serving.supervisor.instances == 2)
    wait_for(lambda: all_ended(serving, jobs))
    rows = web.get("/v2/models/doubler/scaling").json()["decisions"]

    assert max(row["instances"] for row in rows) == 2
    assert all(row["reason"] for row in rows)
    assert states(serving, jobs) == {JobState.SUCCEEDED}


def kill_an_instance(serving):
    """Kill the first that lives; the supervisor may still list one that is dead."""
    for pid in serving.supervisor.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def test_killed_instances_lose_no_job(serving, web):
    jobs = [submit(web, SLEEP, 1.0)["job"] for _ in range(6)]
    for _ in range(2):
        wait_for(lambda: serving.desk.store.counts("doubler")[JobState.RUNNING])
        wait_for(lambda: kill_an_instance(serving))

    wait_for(lambda: all_ended(serving, jobs))

    assert states(serving, jobs) == {JobState.SUCCEEDED}
    rows = web.get("/v2/models/doubler/scaling").json()["decisions"]
    assert "died" in [row["action"] for row in rows]


def test_a_job_that_kills_its_instances_is_quarantined_and_the_others_live(serving, web, end_of):
    poison = submit(web, KILL, 1.0)["job"]
    good = [submit(web, 1.0, 1.0)["job"] for _ in range(4)]

    ended = end_of(poison, 60)
    wait_for(lambda: all_ended(serving, good))

    assert (ended["state"], ended["lapses"]) == ("dead", 5)
    assert "its process died or hung" in ended["error"]
    assert states(serving, good) == {JobState.SUCCEEDED}


def test_an_engine_failure_is_tried_again_and_then_dead_without_its_secrets(web, end_of):
    for value in (BREAK, BUG):
        ended = end_of(submit(web, value, 1.0)["job"])

        assert (ended["state"], ended["failures"]) == ("dead", 3)
        assert "secret" not in json.dumps(ended)
        assert "log says why" in ended["error"]


def test_a_job_past_its_time_ends_with_its_instance_and_the_next_is_answered(serving, web, end_of):
    hung = submit(web, HANG, 1.0, timeout_s=0.1)["job"]
    ended = end_of(hung, 60)

    assert (ended["state"], ended["failures"]) == ("dead", 3)
    assert "within 0.1 s" in ended["error"]
    assert end_of(submit(web, 1.0, 1.0)["job"])["state"] == "succeeded"


def test_a_cancelled_running_job_leaves_no_result(serving, web, end_of):
    asked = submit(web, SLEEP, 1.0)
    wait_for(lambda: web.get(f"{JOBS}/{asked['job']}").json()["state"] == "running")

    cancelled = web.delete(f"{JOBS}/{asked['job']}")
    again = web.delete(f"{JOBS}/{asked['job']}")
    end_of(submit(web, SLEEP, 1.0)["job"])
    wait_for(lambda: not list(Path(asked["output"]).parent.glob(".*.part")))

    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert again.json()["state"] == "cancelled"
    assert not Path(asked["output"]).exists()


def test_lines_are_answered_one_by_one_and_a_bad_line_costs_only_itself(web, inputs, end_of):
    good = json.dumps(request_of(1.0, 2.0))
    (inputs / "many.jsonl").write_text(f"{good}\nnot json\n\n{good}\n")

    asked = web.post(JOBS, json={"input_uri": str(inputs / "many.jsonl")}).json()
    ended = end_of(asked["job"])
    lines = web.get(ended["result_url"]).text.splitlines()

    assert (ended["state"], ended["note"]) == ("succeeded", "3 lines, 1 failed")
    assert asked["output"].endswith(".jsonl")
    assert json.loads(lines[0])["outputs"][0]["data"] == [2.0, 4.0]
    assert json.loads(lines[1])["error"].startswith("line 2: ")
    assert lines[2] == lines[0]


def test_what_was_queued_before_a_stop_is_answered_after_the_next_start(endpoint, settings):
    never = replace(settings, policy=replace(settings.policy, max_instances=1), concurrency=1)
    with serve_jobs_in_thread(endpoint, never) as first:
        body = json.dumps(request_of(SLEEP, 1.0)).encode()
        first.desk.store.put(
            [NewJob(f"j{i}", "doubler", f"{never.output}/j{i}", body) for i in range(3)]
        )
    with serve_jobs_in_thread(endpoint, settings) as second:
        wait_for(lambda: all_ended(second, ["j0", "j1", "j2"]))

        assert states(second, ["j0", "j1", "j2"]) == {JobState.SUCCEEDED}


def test_every_end_leaves_an_observation(serving, web, end_of, endpoint):
    good, bad = submit(web, 1.0, 1.0)["job"], submit(web, BREAK, 1.0)["job"]
    end_of(good)
    end_of(bad)
    serving.stop()

    with ObservationLog(endpoint.log) as log:
        seen = {(o.request_id, o.status) for o in log.read()}

    assert seen == {(good, 200), (bad, 500)}


def test_a_folder_has_one_server(serving, endpoint, settings):
    with pytest.raises(ServeError, match="has one that runs"):
        serve_jobs_in_thread(endpoint, settings)


def test_a_second_job_does_not_wait_for_the_first_in_the_same_instance(web, end_of):
    first = submit(web, SLEEP, 1.0)["job"]
    wait_for(lambda: web.get(f"{JOBS}/{first}").json()["state"] == "running")
    second = submit(web, 1.0, 1.0)["job"]

    assert end_of(second)["ended"] < end_of(first)["ended"]


def test_a_stop_that_ends_a_long_job_does_not_count_against_it(endpoint, settings):
    hasty = replace(endpoint, drain_s=0.0)
    with serve_jobs_in_thread(hasty, settings) as running:
        body = json.dumps(request_of(HANG, 1.0)).encode()
        running.desk.store.put([NewJob("long", "doubler", f"{settings.output}/long", body)])
        wait_for(lambda: running.desk.store.get("long").state is JobState.RUNNING)

    with closing(settings.open_store(is_first=True)) as store:
        found = store.get("long")

    assert (found.state, found.lapses, found.failures) == (JobState.QUEUED, 0, 0)


def test_a_group_that_is_terminated_finishes_what_it_holds(serving, web, end_of):
    job = submit(web, SLEEP, 1.0)["job"]
    wait_for(lambda: web.get(f"{JOBS}/{job}").json()["state"] == "running")
    for pid in serving.supervisor.pids:
        os.kill(pid, signal.SIGTERM)

    assert (end_of(job)["state"], end_of(job)["attempt"]) == ("succeeded", 1)


def test_a_model_that_does_not_open_is_no_endpoint_and_says_why(endpoint, settings):
    with pytest.raises(ServeError, match="must be installed; it is not"):
        serve_jobs_in_thread(endpoint, replace(settings, open_session=open_nothing))


def test_an_instance_that_dies_at_its_start_is_no_endpoint(endpoint, settings):
    with pytest.raises(ServeError, match="must answer in an instance"):
        serve_jobs_in_thread(endpoint, replace(settings, open_session=die_at_start))


def test_retention_takes_the_result_and_then_the_job(serving, web, end_of, settings):
    asked = submit(web, 1.0, 1.0)
    end_of(asked["job"])

    forgotten = sweep(serving.desk.store, replace(settings, retention_s=0.0))

    assert forgotten == 1
    assert not Path(asked["output"]).exists()
    assert web.get(f"{JOBS}/{asked['job']}").status_code == 404


def all_ended(serving, jobs):
    return all(state.is_end for state in states(serving, jobs))


def states(serving, jobs):
    return {serving.desk.store.get(job).state for job in jobs}
