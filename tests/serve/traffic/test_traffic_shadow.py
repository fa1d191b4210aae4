"""Copies of requests, without a server around them."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from ingot.observe.observation import Observation
from ingot.serve.problems import refused
from ingot.serve.protocol import encode_request
from ingot.serve.room import Room
from ingot.serve.traffic.plan import Shadow
from ingot.serve.traffic.shadow import Copies, Watched
from ingot.serve.traffic.ticket import Exchange

FEEDS = {"x": np.ones((1, 2), np.float32), "mask": np.ones(1, np.int64)}
ANSWER = b'{"outputs": [{"name": "kept", "datatype": "BOOL", "shape": [1], "data": [true]}]}'
GIVEN = Observation("r1", 1.0, "doubler", "sha256:v", status=200)
OUTPUTS = {"y": FEEDS["x"], "kept": np.array([True])}


class Runner:
    """A runner on the event loop that does what it is told."""

    ready = 1

    def __init__(self, act):
        self._act = act

    async def run(self, feeds):
        return await self._act()


async def answers():
    return OUTPUTS


async def is_late():
    await asyncio.sleep(30)


async def refuses():
    raise refused("no")


async def breaks():
    raise RuntimeError("secret")


def copy(endpoint, act=answers, *, exchange=None, given=GIVEN, **state):
    """Copy one request to a version whose runner does `act`; return its sums and observations."""
    found = SimpleNamespace(
        in_flight=0, sample=None, runner=Runner(act), is_draining=False, room=Room()
    )
    for name, value in state.items():
        setattr(found, name, value)
    runs, seen = SimpleNamespace(session=None, state=found), []
    watched = Watched(endpoint.version, endpoint.model.signature, runs, timeout_s=0.05)
    copies = Copies(Shadow(3), watched, seen.append)

    async def once():
        copies.copy(given, exchange or Exchange(encode_request(FEEDS), None, ANSWER, None))
        await asyncio.to_thread(lambda: copies._thread.submit(lambda: None).result())

    asyncio.run(once())
    copies.close()
    return copies.sums, seen


@pytest.mark.parametrize(
    ("act", "status"), [(answers, 200), (is_late, 504), (refuses, 422), (breaks, 500)]
)
def test_however_a_copy_ends_both_statuses_are_kept(endpoint, act, status):
    sums, (seen,) = copy(endpoint, act)

    assert sums.statuses == {(200, status): 1}
    assert sums.compared == (status == 200)
    assert (seen.request_id, seen.status, seen.arm) == ("r1.shadow", status, "shadow")


def test_only_outputs_that_the_caller_asked_for_are_compared(endpoint):
    sums, _ = copy(endpoint)

    assert set(sums.outputs) == {"kept"}
    assert sums.agreed == 1


def test_a_version_that_answers_requests_of_its_own_takes_no_copy(endpoint):
    sums, seen = copy(endpoint, in_flight=1)

    assert (sums.dropped, sums.statuses, seen) == (1, {}, [])


def test_nothing_is_copied_while_the_server_drains(endpoint):
    sums, seen = copy(endpoint, is_draining=True)

    assert (sums.dropped, sums.statuses, seen) == (0, {}, [])


@pytest.mark.parametrize("status", [400, 404, 413, 429, 499])
def test_requests_that_reached_no_model_are_not_copied(endpoint, status):
    given = Observation("r1", 1.0, "doubler", "sha256:v", status=status)

    assert copy(endpoint, given=given)[0].statuses == {}


def test_an_answer_that_cannot_be_read_is_our_failure(endpoint, caplog):
    sums, _ = copy(endpoint, exchange=Exchange(encode_request(FEEDS), None, b"{", None))

    assert (sums.failed, sums.compared) == (1, 0)
    assert "failed" in caplog.text


def test_a_request_that_does_not_fit_the_shadow_is_its_refusal(endpoint):
    sums, _ = copy(endpoint, exchange=Exchange(b"{}", None, ANSWER, None))

    assert sums.statuses == {(200, 400): 1}


@pytest.mark.parametrize(("most", "dropped"), [(10, 1), (10_000, 0)])
def test_a_copy_without_room_is_dropped_and_room_is_given_back(endpoint, most, dropped):
    room = Room(most)

    sums, _ = copy(endpoint, room=room)

    assert (sums.dropped, room.used) == (dropped, 0)
