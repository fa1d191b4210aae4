"""Disks that are full: what is accepted stays, what cannot be kept is refused, and all goes on."""

import contextlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from job_words import JOBS, request_of
from outside import wait_for

from ingot.serve.jobs import disks
from ingot.serve.jobs.job import JobState
from ingot.serve.jobs.server import serve_jobs_in_thread

ROOM = 2 * 1024 * 1024


@pytest.fixture
def disk(tmp_path):
    """Give a folder on a disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def put(running, **more):
    body = request_of(1.0, 2.0) | more
    return httpx.post(running.url + JOBS, json=body, trust_env=False, timeout=30)


def state_of(running, answer):
    return running.desk.store.get(answer.json()["job"]).state


def test_a_full_disk_of_jobs_refuses_new_ones_keeps_old_ones_and_recovers(endpoint, settings, disk):
    tiny = replace(settings, folder=disk / "jobs", output=str(disk.parent / "results"),
                   min_free_bytes=0)  # fmt: skip
    with serve_jobs_in_thread(replace(endpoint, log=None), tiny) as running:
        before = put(running)
        wait_for(lambda: state_of(running, before).is_end)
        fill(disk)
        refused = [put(running, id=str(i)) for i in range(40)]
        while refused[-1].status_code == 202:  # what the file had room for is accepted
            refused.append(put(running))
        accepted = [answer for answer in refused if answer.status_code == 202]
        read = httpx.get(running.url + before.json()["status_url"], trust_env=False)
        (disk / "filler").unlink()
        after = wait_for(lambda: answer if (answer := put(running)).status_code == 202 else None)
        everything = [*accepted, after]
        wait_for(lambda: all(state_of(running, one).is_end for one in everything), 60)
        states = {state_of(running, one) for one in everything}

    assert refused[-1].status_code == 507
    assert refused[-1].headers["content-type"] == "application/problem+json"
    assert refused[-1].headers["retry-after"] == "30"
    assert read.json()["state"] == "succeeded"
    assert states == {JobState.SUCCEEDED}


def test_a_job_whose_result_finds_no_room_waits_and_uses_up_no_try(
    endpoint, settings, disk, monkeypatch
):
    results = disk / "results"
    tiny = replace(settings, output=str(results), min_free_bytes=0)
    with serve_jobs_in_thread(endpoint, tiny) as running:
        fill(disk)
        asked = put(running)
        job = asked.json()["job"]
        wait_for(lambda: running.desk.store.get(job).attempt > 1)
        waiting = running.desk.store.get(job)
        (disk / "filler").unlink()
        wait_for(lambda: state_of(running, asked).is_end)
        ended = running.desk.store.get(job)

    assert asked.status_code == 202
    assert waiting.state in {JobState.QUEUED, JobState.RUNNING}
    assert (ended.state, ended.failures, ended.lapses) == (JobState.SUCCEEDED, 0, 0)
    assert Path(asked.json()["output"]).stat().st_size == ended.result_bytes


@pytest.mark.parametrize("place", ["folder", "output"])
def test_with_little_room_no_job_is_accepted(endpoint, settings, monkeypatch, place):
    full = Path(getattr(settings, place))
    monkeypatch.setattr(
        "ingot.serve.jobs.desk.free_bytes", lambda folder: 100 if folder == full else 10**12
    )
    with serve_jobs_in_thread(endpoint, settings) as running:
        refused = put(running)
        monkeypatch.setattr("ingot.serve.jobs.desk.free_bytes", lambda folder: 10**12)
        after = put(running)

    assert refused.status_code == 507
    assert refused.headers["retry-after"] == "30"
    assert "room on the server's disk" in refused.json()["detail"]
    assert after.status_code == 202


def test_the_room_of_a_folder_is_what_the_system_says(tmp_path):
    there = os.statvfs(tmp_path)

    found = disks.free_bytes(tmp_path / "not" / "yet")

    assert abs(found - there.f_bavail * there.f_frsize) < 512 * 1024**2
