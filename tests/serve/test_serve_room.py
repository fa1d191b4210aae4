"""Bodies of many requests at once are bounded together."""

import socket
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
from outside import wait_for

from ingot.core.errors import ServeError
from ingot.observe.log import ObservationLog
from ingot.serve.problems import RequestError
from ingot.serve.room import Room
from ingot.serve.server import serve_in_thread

INFER = "/v2/models/doubler/infer"
HEAD = b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
def narrow(endpoint, doubler):
    """A server that takes bodies of 100,000 bytes, and 200,000 at a time."""
    endpoint = replace(endpoint, max_body_bytes=100_000, max_in_flight_bytes=200_000)
    with serve_in_thread(endpoint, doubler) as running:
        yield running


def send(running, data):
    parts = urlsplit(running.url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=20)
    connection.sendall(data)
    return connection


def test_a_body_that_finds_no_room_is_503_before_it_is_read(narrow, endpoint):
    head = HEAD + b"content-length: 90000\r\nexpect: 100-continue\r\n\r\n"
    room = narrow.state.room
    first, second = send(narrow, head), send(narrow, head)
    wait_for(lambda: room.used == 180_000)

    with send(narrow, head) as third:
        answer = third.recv(65536)
        while part := third.recv(65536):
            answer += part

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in answer
    assert b"180,000 are taken and this one has 90,000 more" in answer
    first.close()
    second.close()
    wait_for(lambda: room.used == 0)
    narrow.stop()
    with ObservationLog(endpoint.log) as log:
        assert sorted(row.status for row in log.read()) == [499, 499, 503]


def test_small_requests_are_answered_while_large_ones_fill_the_room(narrow, body):
    holders = [send(narrow, HEAD + b"content-length: 100000\r\n\r\n") for _ in range(2)]
    wait_for(lambda: narrow.state.room.used == 200_000)

    answer = httpx.post(narrow.url + INFER, json=body, trust_env=False)

    assert answer.status_code == 200
    for holder in holders:
        holder.close()


def test_a_body_without_a_length_takes_room_as_it_comes(narrow):
    piece = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    with send(narrow, HEAD + b"transfer-encoding: chunked\r\n\r\n" + piece) as connection:
        wait_for(lambda: narrow.state.in_flight == 1)
        assert narrow.state.room.used == 0
        connection.sendall(piece * 5)
        wait_for(lambda: narrow.state.room.used == 6 * 0x4000)

    wait_for(lambda: narrow.state.room.used == 0)


def test_room_is_given_back_whatever_becomes_of_a_request(narrow, body):
    body["inputs"][0]["data"] = [1] * 40_000  # large, and of a wrong shape
    with httpx.Client(base_url=narrow.url, trust_env=False) as client:
        for _ in range(20):
            assert client.post(INFER, json=body).status_code == 400

    assert narrow.state.room.used == 0


def test_what_was_taken_is_bounded():
    room = Room(10)
    room.take(10)

    with pytest.raises(RequestError) as refusal:
        room.take(1)

    assert refusal.value.status == 503
    room.give(4)
    room.take(4)
    assert room.used == 10


def test_the_largest_body_always_finds_room():
    room = Room.of(2**60, None)

    room.take(2**60)


def test_a_room_smaller_than_a_body_is_refused_at_the_start(endpoint, doubler):
    with pytest.raises(ServeError, match=r"largest body, 4,096 bytes; got 100\."):
        serve_in_thread(replace(endpoint, max_in_flight_bytes=100), doubler)
