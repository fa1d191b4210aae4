"""Callers that send or read too slowly, or without end."""

import socket
import time
from dataclasses import replace

import httpx
import pytest
from outside import connect, read_all

from ingot.serve.server import serve_in_thread

HEAD = b"POST /v2/models/doubler/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"


@pytest.fixture
def hurried(endpoint, doubler):
    with serve_in_thread(replace(endpoint, read_timeout_s=0.3), doubler) as running:
        yield running


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


@pytest.mark.parametrize("rest", [b"x-a: 1\r\n", b"x-a: " + b"a" * 8192])
def test_trailers_without_end_are_431(running, rest):
    head = HEAD.replace(b"content-length: 100", b"transfer-encoding: chunked") + b"\r\n"
    answer = b""
    with connect(running) as connection:
        connection.sendall(head + b"1\r\n[\r\n0\r\n")
        try:
            for _ in range(10_000):
                connection.sendall(rest)
                rest = rest if rest.endswith(b"\n") else b"a" * 8192
            answer = read_all(connection)
        except OSError:  # hung up on while it sent
            answer = b"HTTP/1.1 431 "
        assert answer.startswith(b"HTTP/1.1 431 ")
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        assert client.get("/v2/health/live").status_code == 200


def test_a_body_in_many_small_pieces_is_no_head(running, body):
    import json

    content = json.dumps(body).encode().ljust(4000)  # spaces: each in a chunk of its own
    head = HEAD.replace(b"content-length: 100", b"transfer-encoding: chunked") + b"\r\n"
    with connect(running) as connection:
        connection.sendall(head)
        for byte in content:
            size = b"1;" + b"e" * 30 + b"\r\n"  # 130,000 bytes of heads of chunks in all
            connection.sendall(size + bytes([byte]) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")

        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_connection_with_too_many_requests_in_waiting_is_closed(running):
    sent = b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n" * 5000
    with connect(running) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        with pytest.raises(OSError, match="reset|pipe"):
            connection.sendall(sent * 1000)

    assert running.is_alive


@pytest.mark.parametrize(("method", "status"), [(b"GET", b"200"), (b"POST", b"400")])
def test_whoever_offers_another_protocol_is_answered_in_this_one(running, method, status):
    offer = b" /v2 HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n"
    with connect(running) as connection:
        connection.sendall(method + offer + b"content-length: 2\r\n\r\n{}")

        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 " + status)
    assert (b"HttpClient.Version.HTTP_1_1" in answer) == (status == b"400")
