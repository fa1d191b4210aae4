"""The loop of an instance, run here with a store and a pipe: what it says and what it does."""

import errno
import json
import multiprocessing
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from job_sessions import BREAK, BUG, SLEEP, Doubler
from job_words import request_of
from outside import wait_for

from ingot.core.errors import EngineError
from ingot.serve.jobs import instance
from ingot.serve.jobs.answer import GivenUp, Worker
from ingot.serve.jobs.ends import Ends
from ingot.serve.jobs.instance import IDLE, STOP, WORK, _Loop, explain, listen
from ingot.serve.jobs.job import JobState, NewJob, StoreError
from ingot.serve.problems import RequestError


@pytest.fixture
def store(settings):
    found = settings.open_store(is_first=True)
    yield found
    found.close()


@pytest.fixture
def loop(endpoint, settings, store):
    ours, theirs = multiprocessing.Pipe()
    inbox, is_open = queue.SimpleQueue(), threading.Event()
    is_open.set()
    threading.Thread(target=listen, args=(theirs, inbox, is_open), daemon=True).start()
    with ThreadPoolExecutor(settings.concurrency) as pool:
        ends, worker = Ends(endpoint), Worker(endpoint, Doubler(), settings)
        made = _Loop(worker, store, pool, ends, owner="me", tell=theirs.send, inbox=inbox)
        made.said = ours
        thread = threading.Thread(target=made.run)
        made.thread = thread
        yield made
        made.stop()
        if thread.ident:
            thread.join()
    ends.close()
    ours.close()
    theirs.close()


def put(store, settings, name, *values, timeout_s=60.0):
    body = json.dumps(request_of(*values)).encode()
    output = f"{settings.output}/{name}.json"
    store.put([NewJob(name, "doubler", output, body, timeout_s=timeout_s)])


def state(store, name):
    return store.get(name).state


def test_jobs_end_as_they_deserve_and_the_loop_ends_when_told(loop, store, settings):
    put(store, settings, "good", 1.0, 2.0)
    put(store, settings, "broken", BREAK, 1.0)
    put(store, settings, "bug", BUG, 1.0)
    loop.thread.start()
    wait_for(lambda: all(state(store, name).is_end for name in ("good", "broken", "bug")))
    loop.said.send(STOP)
    loop.thread.join()

    assert state(store, "good") is JobState.SUCCEEDED
    assert state(store, "broken") is state(store, "bug") is JobState.DEAD


def test_it_says_once_that_it_could_do_more_and_again_after_a_hint(loop, store, settings):
    loop.thread.start()
    assert loop.said.recv() == IDLE
    put(store, settings, "j", 1.0, 2.0)
    loop.said.send(WORK)
    assert loop.said.recv() == IDLE
    wait_for(lambda: state(store, "j") is JobState.SUCCEEDED)

    assert not loop.said.poll(0.05)


def test_a_supervisor_that_is_gone_ends_it_when_nothing_is_in_hand(loop, store, settings):
    put(store, settings, "j", SLEEP, 2.0)
    loop.thread.start()
    wait_for(lambda: state(store, "j") is JobState.RUNNING)
    loop.said.close()
    loop.thread.join()

    assert state(store, "j") is JobState.SUCCEEDED


def test_a_lost_lease_discards_the_answer(loop, store, settings):
    put(store, settings, "j", SLEEP, 2.0)
    loop.thread.start()
    wait_for(lambda: state(store, "j") is JobState.RUNNING)
    store.cancel("j")
    loop.stop()
    loop.thread.join()

    assert state(store, "j") is JobState.CANCELLED
    assert not list((settings.folder / "results").iterdir())


def test_an_engine_that_hangs_takes_its_process_and_gives_the_others_back(
    loop, store, settings, monkeypatch
):
    gone = threading.Event()

    def leave(code):
        gone.set()
        raise SystemExit(code)

    monkeypatch.setattr(instance.os, "_exit", leave)
    monkeypatch.setattr(instance, "_GRACE_S", 0.0)
    put(store, settings, "hangs", SLEEP, 1.0, timeout_s=0.01)
    put(store, settings, "other", SLEEP, 1.0)
    loop._claim()
    time.sleep(0.02)
    with pytest.raises(SystemExit, match="70"):
        loop._beat()

    assert gone.is_set()
    assert store.get("hangs").failures == 1
    assert (state(store, "other"), store.get("other").failures) == (JobState.QUEUED, 0)


def test_a_store_that_cannot_be_written_for_a_while_does_not_end_it(loop, store, monkeypatch):
    calls = []

    def full(*values, **more):
        calls.append(values)
        raise StoreError("full")

    monkeypatch.setattr(store, "claim", full)
    monkeypatch.setattr(instance, "_POLL_S", 0.001)
    loop.thread.start()
    wait_for(lambda: len(calls) > 3)
    loop.stop()
    loop.thread.join()


def failing(loop, error, times):
    """Make the first attempts of a loop's worker fail."""
    left, answer = [times], loop._worker.answer

    def fail(lease, stop):
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return answer(lease, stop)

    loop._worker = SimpleNamespace(answer=fail)


def test_a_full_disk_uses_up_none_of_a_jobs_tries(loop, store, settings, monkeypatch):
    monkeypatch.setattr(instance, "_FULL_PAUSE_S", 0.01)
    failing(loop, OSError(errno.ENOSPC, "No space left on device"), times=5)
    put(store, settings, "j", 1.0, 2.0)
    loop.thread.start()
    wait_for(lambda: state(store, "j").is_end)

    found = store.get("j")
    assert (found.state, found.failures, found.lapses) == (JobState.SUCCEEDED, 0, 0)
    assert found.attempt == 6


def test_a_place_that_cannot_be_reached_is_tried_again_and_named_in_the_end(loop, store, settings):
    failing(loop, OSError(errno.EHOSTUNREACH, "No route to host"), times=9)
    put(store, settings, "j", 1.0, 2.0)
    loop.thread.start()
    wait_for(lambda: state(store, "j").is_end)

    found = store.get("j")
    assert (found.state, found.failures) == (JobState.DEAD, 3)
    assert "must be reachable; got: No route to host" in found.error


def test_a_job_that_cannot_be_given_back_at_once_is_given_back_later(
    loop, store, settings, monkeypatch
):
    monkeypatch.setattr(instance, "_FULL_PAUSE_S", 0.01)
    failing(loop, OSError(errno.ENOSPC, "No space left on device"), times=1)
    refusals, release = [StoreError("full")] * 3, store.release

    def full(leases):
        if refusals:
            raise refusals.pop()
        return release(leases)

    monkeypatch.setattr(store, "release", full)
    put(store, settings, "j", 1.0, 2.0)
    loop.thread.start()
    wait_for(lambda: state(store, "j").is_end)

    found = store.get("j")
    assert (found.state, found.lapses, found.attempt) == (JobState.SUCCEEDED, 0, 2)


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (RequestError("wrong", status=413), 413, False), (GivenUp("late"), 504, True),
        (OSError(28, "No space left on device"), 502, True), (EngineError("x"), 500, True),
        (KeyError("x"), 500, True),
    ],
)  # fmt: skip
def test_errors_are_told_by_kind_and_only_the_hopeful_tried_again(error, status, retry):
    found, words, again = explain(error)

    assert (found, again) == (status, retry)
    assert words
