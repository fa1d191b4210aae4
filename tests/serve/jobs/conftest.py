"""Asynchronous endpoints for the tests of this room: real instances, a real socket."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from job_sessions import open_doubler
from job_words import JOBS, request_of
from outside import wait_for

from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.job import RetryPolicy
from ingot.serve.jobs.server import RunningJobs, serve_jobs_in_thread
from ingot.serve.jobs.settings import AsyncSettings
from ingot.twin.policy import ScalingPolicy


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "one.json").write_text(json.dumps(request_of(1.0, 2.0)))
    return folder


@pytest.fixture
def settings(tmp_path: Path, inputs: Path) -> AsyncSettings:
    return AsyncSettings(
        folder=tmp_path / "jobs",
        policy=ScalingPolicy(max_instances=2, in_cooldown_s=0.5, out_cooldown_s=0.5),
        retry=RetryPolicy(base_s=0.02, cap_s=0.05),
        roots=(str(inputs),),
        open_session=open_doubler,
        notify_networks=("127.0.0.0/8",),
        lease_s=2.0,
    )


@pytest.fixture
def serving(endpoint: Endpoint, settings: AsyncSettings) -> Iterator[RunningJobs]:
    with serve_jobs_in_thread(endpoint, settings) as running:
        yield running


@pytest.fixture
def web(serving: RunningJobs) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serving.url, trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture
def end_of(web: httpx.Client):
    def end(job: str, timeout_s: float = 30.0) -> dict:
        def ended():
            found = web.get(f"{JOBS}/{job}").json()
            return found if found["state"] not in {"queued", "running"} else None

        return wait_for(ended, timeout_s)

    return end
