"""Bodies of two gigabytes, however they are announced: refused early, in bounded memory."""

import socket
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from job_sessions import open_doubler

from ingot.serve.jobs.server import serve_jobs_in_thread
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.server import serve_in_thread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
HUGE = 2 * 1024**3
LIMIT = 8 * 1024**2
ZEROS = bytes(1024**2)
SPARE = 48 * 1024**2  # what a process grows by for other reasons, and one copy of a whole body
DECLARED, CHUNKED = "declared", "chunked"


@pytest.fixture(params=["infer", "jobs"])
def server(request, endpoint, doubler):
    """Give the URL of a server of either kind and the path of what takes a body."""
    large = replace(endpoint, max_body_bytes=LIMIT, log=None)
    if request.param == "infer":
        with serve_in_thread(large, doubler) as running:
            yield running.url, "/v2/models/doubler/infer"
    else:
        folder = endpoint.model.path / "jobs"
        with serve_jobs_in_thread(large, AsyncSettings(folder, open_session=open_doubler)) as jobs:
            yield jobs.url, "/v2/models/doubler/jobs"


def resident_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


def pour(url, head, *, is_chunked):
    """Send up to two gigabytes and return bytes sent, growth of memory, and the answer."""
    parts, before = urlsplit(url), resident_bytes()
    sent, peak, answer = 0, before, b""
    piece = b"%x\r\n%b\r\n" % (len(ZEROS), ZEROS) if is_chunked else ZEROS
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        try:
            connection.sendall(head)
            while sent < HUGE:
                connection.sendall(piece)
                sent += len(ZEROS)
                peak = max(peak, resident_bytes())
        except OSError:  # hung up on
            pass
        try:
            answer = connection.recv(65536)
        except OSError:
            answer = b""
    return sent, peak - before, answer


@pytest.mark.parametrize("kind", [DECLARED, CHUNKED])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_two_gigabytes_are_refused_early_in_bounded_memory(server, kind, method):
    url, path = server
    length = {DECLARED: f"content-length: {HUGE}", CHUNKED: "transfer-encoding: chunked"}[kind]
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n".encode()

    sent, grown, answer = pour(url, head, is_chunked=kind == CHUNKED)
    health = httpx.get(url + "/v2/health/live", trust_env=False)

    assert sent < HUGE / 8
    assert grown < LIMIT + SPARE
    assert not answer or int(answer.split()[1]) < 500
    assert health.status_code == 200


@pytest.mark.parametrize("kind", [DECLARED, CHUNKED])
def test_who_sends_two_gigabytes_and_listens_is_told_413(server, kind):
    url, path = server
    parts = urlsplit(url)
    chunked = kind == CHUNKED
    length = "transfer-encoding: chunked" if chunked else f"content-length: {HUGE}"
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n".encode())
        if chunked:  # so much as the smaller of both limits and a little more
            size = 128_001 if path.endswith("jobs") else LIMIT + 1
            connection.sendall(b"%x\r\n%b\r\n" % (size, bytes(size)))
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    assert b"connection: close" in answer.lower()


def test_a_body_beyond_the_length_that_was_announced_is_not_read_as_one(server):
    url, path = server
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n".encode()

    sent, grown, answer = pour(url, head, is_chunked=False)

    assert sent < HUGE / 8
    assert grown < SPARE
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
