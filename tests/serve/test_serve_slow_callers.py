"""Callers that send or read too slowly, or without end."""

import socket
import time
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest

from ingot.serve.server import serve_in_thread

HEAD = b"POST /v2/models/doubler/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"


@pytest.fixture
def hurried(endpoint, doubler):
    with serve_in_thread(replace(endpoint, read_timeout_s=0.3), doubler) as running:
        yield running


def connect(running):
    parts = urlsplit(running.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def read_all(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("sent", [b"", b"POST /v2", HEAD, HEAD + b"\r\n{"])
def test_a_request_that_does_not_arrive_in_time_is_408_and_hung_up_on(hurried, sent):
    with connect(hurried) as connection:
        connection.sendall(sent)

        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert b"within 0.3 s" in answer


def test_a_request_that_trickles_is_hung_up_on(hurried):
    with connect(hurried) as connection:
        connection.settimeout(0.05)
        answer = b""
        for byte in HEAD * 10:
            try:
                connection.sendall(bytes([byte]))
                answer += connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break

    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_kept_connection_may_be_idle_between_requests(hurried, body):
    with httpx.Client(base_url=hurried.url, trust_env=False) as client:
        first = client.post("/v2/models/doubler/infer", json=body)
        (connection,) = hurried.server.server_state.connections
        time.sleep(1.5)
        (same,) = hurried.server.server_state.connections
        second = client.post("/v2/models/doubler/infer", json=body)

    assert (first.status_code, second.status_code) == (200, 200)
    assert same is connection


def test_headers_without_end_are_431(running):
    with connect(running) as connection:
        lines = b"".join(b"x-%d: %b\r\n" % (number, b"a" * 100) for number in range(700))
        connection.sendall(b"GET /v2 HTTP/1.1\r\n" + lines)
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_caller_that_does_not_read_its_answer_is_hung_up_on(endpoint):
    import numpy as np

    class Large:
        def run(self, feeds):
            rows = 1 if feeds["x"][0, 0] == 0 else 4_000_000
            return {"y": np.ones((rows, 2), np.float32), "kept": np.ones(1, bool)}

        def close(self):
            return

    content = (
        b'{"parameters": {"binary_data_output": true}, "inputs": ['
        b'{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},'
        b'{"name": "mask", "shape": [1], "datatype": "INT64", "data": [1]}]}'
    )
    with serve_in_thread(replace(endpoint, read_timeout_s=0.3), Large()) as running:
        with connect(running) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(HEAD.replace(b"100", b"%d" % len(content)) + b"\r\n" + content)
            deadline = time.monotonic() + 20
            while not running.state.in_flight and time.monotonic() < deadline:
                time.sleep(0.01)
            while running.server.server_state.connections and time.monotonic() < deadline:
                time.sleep(0.05)

            assert not running.server.server_state.connections
        assert running.state.in_flight == 0


def test_what_is_not_http_gets_a_problem_document(running):
    with connect(running) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")

        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer
