import time
from dataclasses import replace

import httpx
import pytest
from job_words import JOBS, request_of

from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access, Rate
from ingot.serve.jobs.server import serve_jobs_in_thread

MODEL = "/v2/models/doubler"


@pytest.fixture
def keys(tmp_path):
    return KeyStore(tmp_path / "keys.sqlite")


@pytest.fixture
def ask(endpoint, settings, keys):
    locked = replace(endpoint, access=Access(keys=keys._path))
    with (
        serve_jobs_in_thread(locked, settings) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client,
    ):

        def request(method, path, key="", **more):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return client.request(method, path, headers=headers, **more)

        yield request


def test_jobs_ask_for_a_key_and_health_does_not(ask, keys):
    infer, read = (keys.create("k", [f"{action}:doubler"])[0] for action in ("infer", "read"))
    time.sleep(1.05)  # a running server looks for new keys once a second
    body = request_of(1.0, 2.0)

    denied = [ask("POST", JOBS, json=body), ask("GET", MODEL), ask("GET", "/metrics", infer),
              ask("POST", JOBS, read, json=body)]  # fmt: skip
    job = ask("POST", JOBS, infer, json=body).json()["job"]
    while ask("GET", f"{JOBS}/{job}", read).json()["state"] in {"queued", "running"}:
        time.sleep(0.01)

    assert [answer.status_code for answer in denied] == [401, 401, 403, 403]
    assert denied[0].headers["www-authenticate"] == "Bearer"
    assert ask("GET", f"{JOBS}/{job}/result", read).status_code == 403
    assert ask("GET", f"{JOBS}/{job}/result", infer).status_code == 200
    assert ask("DELETE", f"{JOBS}/{job}", read).status_code == 403
    assert ask("POST", f"{JOBS}/{job}/retry", read).status_code == 403
    assert ask("GET", "/v2/health/ready").status_code == 200


def test_a_caller_of_jobs_beyond_its_rate_gets_429_and_its_job_stays(endpoint, settings):
    limited = replace(endpoint, rate=Rate(0.01, burst=2))
    with (
        serve_jobs_in_thread(limited, settings) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client,
    ):
        job = client.post(JOBS, json=request_of(1.0, 2.0))
        seen = client.get(job.json()["status_url"])
        refused = [client.get(JOBS), client.post(JOBS, json=request_of(1.0, 2.0))]
        health = client.get("/v2/health/ready")
        kept = running.desk.store.get(job.json()["job"])

    assert (job.status_code, seen.status_code, health.status_code) == (202, 200, 200)
    assert [answer.status_code for answer in refused] == [429, 429]
    assert 95 < int(refused[0].headers["retry-after"]) <= 100
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert kept is not None
