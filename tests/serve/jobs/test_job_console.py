"""The console of a jobs server, most of it over a store that is filled by hand."""

import asyncio
import re
from dataclasses import replace

import httpx
import pytest
from job_sessions import BREAK, HANG
from job_words import JOBS, request_of
from outside import wait_for

from ingot.serve.access.keys import KeyStore
from ingot.serve.console.page import Visit
from ingot.serve.console.rendering import Renderer
from ingot.serve.endpoint import Access
from ingot.serve.jobs.console import JobPages
from ingot.serve.jobs.console_actions import JobActions
from ingot.serve.jobs.decisions import DecisionLog
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.job import JobState, NewJob
from ingot.serve.jobs.server import serve_jobs_in_thread
from ingot.serve.problems import RequestError
from ingot.twin.policy import Memory, ScalingPolicy, Seen

HOSTILE = "</td><script>alert(1)</script>"


@pytest.fixture
def desk(endpoint, settings):
    store = settings.open_store(is_first=True)
    decisions = DecisionLog(settings.folder / "scaling.sqlite", clock=lambda: 5000.0)
    made = JobDesk(
        endpoint, settings, store, decisions, wake=lambda: None, is_ready=lambda: True
    )  # fmt: skip
    yield made
    made.close()
    store.close()
    decisions.close()


@pytest.fixture
def pages(desk):
    return JobPages(desk, instances=lambda: 1, clock=lambda: 5000.0)


def put(desk, *names, caller_id=""):
    jobs = [NewJob(n, desk.name, f"out/{n}.json", b"{}", caller_id=caller_id) for n in names]
    desk.store.put(jobs)


def read(page, caller=None, path=None, **query):
    return asyncio.run(page(Visit(caller, path or {}, query, "http://127.0.0.1:1")))


def kill(desk, error):
    """Give the next job up, for a reason."""
    (lease,) = desk.store.claim(desk.name, "owner", n=1, lease_s=60.0)
    desk.store.fail(lease, error, retry=False)


def test_the_list_has_the_newest_first_and_is_paged(desk, pages):
    put(desk, *(f"job-{i}" for i in range(5)))

    first = read(pages.jobs, limit="2")
    second = read(pages.jobs, limit="2", after=first.next)
    last = read(pages.jobs, limit="2", after=second.next)
    assert [job.id for job in first.jobs + second.jobs + last.jobs] == [
        "job-4", "job-3", "job-2", "job-1", "job-0",
    ]  # fmt: skip
    assert last.next == ""


def test_the_list_is_filtered_by_state(desk, pages):
    put(desk, "one", "two")
    kill(desk, "it broke")

    found = read(pages.jobs, state="dead")
    assert [(job.id, job.error) for job in found.jobs] == [("one", "it broke")]
    assert dict(found.states)["queued"] == 1


def test_a_state_that_does_not_exist_is_refused(pages):
    with pytest.raises(RequestError, match="No job is ever 'ded'"):
        read(pages.jobs, state="ded")


def test_the_endpoint_says_backlog_instances_and_the_last_reason(desk, pages):
    put(desk, "one", "two", "three")
    policy = ScalingPolicy(max_instances=2, target=1.0)
    desk.decisions.record(desk.name, policy.decide(Seen(0.0, 3, 0), Memory()))

    (row,) = read(pages.fleet).rows
    assert (row.queued, row.running, row.instances, row.wanted, row.most) == (3, 0, 1, 2, 2)
    assert row.per_instance == 3.0
    assert row.last.reason == "3 jobs and no instance"


def test_scaling_shows_changes_and_holds_only_when_asked(desk, pages):
    policy = ScalingPolicy()
    for backlog, instances in ((1, 0), (1, 1)):
        seen = Seen(0.0, backlog, instances)
        desk.decisions.record(desk.name, policy.decide(seen, Memory()))

    assert [one.action for one in read(pages.scaling).decisions] == ["wake"]
    assert [one.action for one in read(pages.scaling, all="1").decisions] == ["hold", "wake"]


def test_charts_of_scaling_have_what_the_decisions_saw(desk, pages):
    decision = ScalingPolicy(target=5.0).decide(Seen(0.0, 23, 2), Memory())
    desk.decisions.record(desk.name, decision)

    backlog, per_instance, instances = read(pages.scaling).charts
    assert backlog.times == (5000.0,)
    assert backlog.lines[0].values == (23.0,)
    assert per_instance.lines[0].values == (11.5,)
    assert [line.values for line in instances.lines] == [(2.0,), (5.0,)]


def test_a_stream_gets_only_what_is_new(desk, pages):
    decision = ScalingPolicy().decide(Seen(0.0, 3, 0), Memory())
    desk.decisions.record(desk.name, decision)
    visit = Visit(None, since=5000.0)

    assert asyncio.run(pages.scaling(visit)).charts[0].times == ()


def test_a_job_that_is_not_there_is_not_found(pages):
    with pytest.raises(RequestError) as caught:
        read(pages.job, path={"job": "nobody"})

    assert caught.value.status == 404


def test_a_job_of_another_model_is_not_shown(desk, pages):
    desk.store.put([NewJob("theirs", "letters", "out/x.json", b"{}")])

    with pytest.raises(RequestError) as caught:
        read(pages.job, path={"job": "theirs"})

    assert caught.value.status == 404


@pytest.fixture
def guarded(endpoint, settings, tmp_path):
    """Return a server that asks for keys, and two of them: one may look, one may act."""
    store = KeyStore(tmp_path / "keys.sqlite")
    keys = {name: store.create(name, [f"{name}:*"])[0] for name in ("read", "infer")}
    wanted = replace(endpoint, console=True, drain_s=0.1, access=Access(tmp_path / "keys.sqlite"))
    with (
        serve_jobs_in_thread(wanted, settings) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client,
    ):
        client.headers.update({"accept": "text/html", "origin": running.url})
        yield client, keys


def slow_job(client, key, values=(HANG, 0.0), **more):
    """Put a job, by itself one that takes its instance a while, and return its id."""
    headers = {"authorization": f"Bearer {key}"}
    answer = client.post(JOBS, json=request_of(*values) | more, headers=headers)
    return answer.json()["job"]


def sign_in(client, key):
    client.cookies.clear()
    assert client.post("/console/login", data={"key": key}).status_code == 303


def token_of(page):
    return re.search(r'name="token" value="(\w+)"', page.text)[1]


def test_a_button_cancels_and_needs_its_token(guarded):
    client, keys = guarded
    job = slow_job(client, keys["infer"])
    sign_in(client, keys["infer"])
    token = token_of(client.get(f"/console/jobs/{job}"))
    forged = client.post(f"/console/jobs/{job}/cancel", data={"token": "0" * 64})
    between = client.get(f"/console/jobs/{job}.json").json()["job"]["state"]
    done = client.post(f"/console/jobs/{job}/cancel", data={"token": token})

    assert forged.status_code == 403
    assert between != "cancelled"
    assert done.headers["location"] == f"/console/jobs/{job}"
    assert client.get(f"/console/jobs/{job}.json").json()["job"]["state"] == "cancelled"


def test_a_button_needs_what_the_api_needs(guarded):
    client, keys = guarded
    job = slow_job(client, keys["infer"])
    sign_in(client, keys["read"])
    page = client.get(f"/console/jobs/{job}")
    answer = client.post(f"/console/jobs/{job}/cancel", data={"token": token_of(page)})

    assert "Cancel this job" not in page.text
    assert answer.status_code == 403
    assert client.get(f"/console/jobs/{job}.json").json()["job"]["state"] != "cancelled"


def dead_job(client, key):
    """Put a job that its engine cannot answer, wait for its death, and return its id."""
    job = slow_job(client, key, values=(BREAK, 0.0))
    wait_for(lambda: state_of(client, key, job) == "dead")
    return job


def state_of(client, key, job):
    found = client.get(f"{JOBS}/{job}", headers={"authorization": f"Bearer {key}"})
    return found.json()["state"]


def test_what_callers_write_is_text(guarded):
    client, keys = guarded
    job = slow_job(client, keys["infer"], id=HOSTILE)
    sign_in(client, keys["read"])

    for path in ("/console/jobs", f"/console/jobs/{job}"):
        text = client.get(path).text
        assert HOSTILE not in text
        assert "&lt;/td&gt;&lt;script&gt;" in text


def test_a_dead_job_is_retried_with_its_token_only(guarded):
    client, keys = guarded
    job = dead_job(client, keys["infer"])
    sign_in(client, keys["infer"])
    page = client.get(f"/console/jobs/{job}")
    forged = client.post(f"/console/jobs/{job}/retry", data={"token": "0" * 64})
    before = state_of(client, keys["infer"], job)
    done = client.post(f"/console/jobs/{job}/retry", data={"token": token_of(page)})
    after = client.get(f"/console/jobs/{job}.json").json()["job"]

    assert "Retry this job" in page.text
    assert (forged.status_code, before) == (403, "dead")
    assert done.headers["location"] == f"/console/jobs/{job}"
    assert after["note"].startswith("retried after ")


@pytest.mark.parametrize("path", ["/console/jobs/{job}/retry", "/console/jobs/retry-dead"])
def test_retrying_needs_what_the_api_needs(guarded, path):
    client, keys = guarded
    job = dead_job(client, keys["infer"])
    sign_in(client, keys["read"])
    pages = [client.get(f"/console/jobs/{job}"), client.get("/console/jobs?state=dead")]
    answer = client.post(path.format(job=job), data={"token": token_of(pages[0])})

    assert all("Retry" not in page.text for page in pages)
    assert answer.status_code == 403
    assert state_of(client, keys["infer"], job) == "dead"


def test_retrying_all_leaves_no_page_of_the_dead_out(desk, pages, monkeypatch):
    monkeypatch.setattr("ingot.serve.jobs.console_actions._AT_ONCE", 2)
    names = [f"j{i}" for i in range(5)]
    put(desk, *names)
    for _ in names:
        kill(desk, "it broke")
    shown = read(pages.jobs, state="dead").can_retry, read(pages.jobs).can_retry
    read(JobActions(desk).retry_dead)

    assert shown == (True, False)
    assert desk.store.counts(desk.name)[JobState.DEAD] == 0
    leases = desk.store.claim(desk.name, "owner", n=9, lease_s=60.0)
    assert [lease.job for lease in leases] == names  # the first put comes first again


def test_retrying_more_than_may_wait_says_so(desk, monkeypatch):
    put(desk, "one")
    kill(desk, "it broke")
    monkeypatch.setattr(desk.store, "_max_queued", 0)

    with pytest.raises(RequestError, match="At most 0 jobs may wait") as caught:
        read(JobActions(desk).retry, path={"job": "one"})
    assert caught.value.status == 429


def test_an_error_text_is_text(desk, pages):
    put(desk, "one")
    kill(desk, HOSTILE)
    renderer = Renderer((), has_sessions=False)
    text = renderer.live("job.html", read(pages.job, path={"job": "one"}), token="")

    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)" in text
