"""The short way through the web server: the same answers as the long way, in every situation."""

import json
import re
import socket
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest

from ingot.observe.log import ObservationLog
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access
from ingot.serve.infer import InferRoute
from ingot.serve.server import serve_in_thread

PATH = "/v2/models/doubler/infer"
CHANGING = re.compile(rb"(?mi)^(date|x-request-id):.*\r\n")


@pytest.fixture
def taken(monkeypatch):
    """Whether each request that could go the short way was answered there."""
    found = []
    answer_now = InferRoute.answer_now

    def watched(self, *arguments):
        reply = answer_now(self, *arguments)
        found.append(reply is not None)
        return reply

    monkeypatch.setattr(InferRoute, "answer_now", watched)
    return found


def request(body, *, path=PATH, headers="", version="1.1", method="POST"):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/{version}\r\nhost: x\r\ncontent-length: {len(raw)}\r\n{headers}\r\n"
    )
    return head.encode() + raw


def exchange(running, *pieces, answers=1):
    """Send pieces, a pause between them, and return what comes back."""
    parts = urlsplit(running.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces[:-1]:
            connection.sendall(piece)
            ask(running)  # by the time this is answered the piece has been read
        connection.sendall(pieces[-1])
        connection.settimeout(20)
        got = b""
        while len(heads(got)) < answers or not is_whole(got):
            part = connection.recv(65536)
            if not part:
                break
            got += part
    return got


def ask(running):
    httpx.get(running.url + "/v2/health/live", trust_env=False)


def heads(got):
    return re.findall(rb"HTTP/1.1 (\d+) ", got)


def is_whole(got):
    while got:
        head, gap, rest = got.partition(b"\r\n\r\n")
        if not gap:
            return False
        size = int((re.findall(rb"(?i)content-length: (\d+)", head) or [0])[0])
        if len(rest) < size:
            return False
        got = rest[size:]
    return True


def lines(got):
    head, _, body = CHANGING.sub(b"", got).partition(b"\r\n\r\n")
    return sorted(head.lower().split(b"\r\n")), body


def test_a_whole_request_is_answered_on_the_spot(running, body, taken):
    assert heads(exchange(running, request(body))) == [b"200"]
    assert taken == [True]


def test_either_way_gives_the_same_answer(running, body, taken):
    sent = request(body)

    short, long = exchange(running, sent), exchange(running, sent[:-9], sent[-9:])

    assert lines(short) == lines(long)
    assert taken == [True]


@pytest.mark.parametrize(
    "raw",
    [b"{", b'{"inputs": []}', b'{"inputs": [{"name": "z", "shape": [1], "datatype": "FP32"}]}'],
)
def test_either_way_refuses_in_the_same_words(running, raw, taken):
    sent = request(raw)

    short, long = exchange(running, sent), exchange(running, sent[:-1], sent[-1:])

    assert lines(short) == lines(long)
    assert taken == [True]


def test_either_way_has_a_date_and_an_id_of_its_own(running, body):
    got = [exchange(running, request(body)) for _ in range(2)]

    ids = [re.search(rb"x-request-id: ([0-9a-f]{32})\r", answer)[1] for answer in got]
    assert ids[0] != ids[1]
    assert all(b"\r\ndate: " in answer for answer in got)


@pytest.mark.parametrize(
    "words",
    [
        {"headers": "connection: close\r\n"},
        {"version": "1.0"},
        {"path": PATH + "?a=1"},
        {"path": "/v2/models/doubler/versions/3/../3/infer"},
        {"path": "/v2/models/d%6Fubler/infer"},
        {"method": "PUT"},
    ],
)
def test_what_is_unusual_goes_the_long_way(running, body, taken, words):
    got = exchange(running, request(body, **words))

    assert len(heads(got)) == 1
    assert taken == []


def test_a_body_that_waits_to_be_asked_for_is_asked_for(running, body, taken):
    whole = request(body, headers="expect: 100-continue\r\n")
    head, _, rest = whole.partition(b"\r\n\r\n")

    got = exchange(running, head + b"\r\n\r\n", rest, answers=2)

    assert got.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert taken == []


def test_requests_sent_at_once_are_answered_in_order(running, body, taken):
    first, second = (request(body | {"id": name}) for name in ("one", "two"))
    slow = request(b"", path="/v2/models/doubler/ready", method="GET")

    got = exchange(running, first + slow + second, answers=3)

    assert heads(got) == [b"200", b"200", b"200"]
    assert got.index(b'"one"') < got.index(b'"ready"') < got.index(b'"two"')


def test_a_large_body_goes_the_long_way(running, body, taken):
    got = exchange(running, request(b" " * 5000))

    assert heads(got) == [b"413"]
    assert taken in ([False], [])  # how much of it arrives at once is the system's to say


def test_a_connection_may_carry_any_number_of_requests(running, body, taken):
    sent = request(body, headers="x-filler: " + "a" * 1000 + "\r\n")
    parts = urlsplit(running.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        for _ in range(100):  # more than a head may take, if they were counted together
            connection.sendall(sent)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")

    assert taken == [True] * 100


def test_an_engine_that_fails_is_asked_once(endpoint, doubler, body, taken, monkeypatch):
    body["inputs"][0]["data"][0] = -1
    calls = []
    run = doubler.run
    monkeypatch.setattr(doubler, "run", lambda feeds: calls.append(1) or run(feeds))
    with serve_in_thread(endpoint, doubler) as running:
        calls.clear()
        got = exchange(running, request(body))

    assert heads(got) == [b"500"]
    assert b"secret" not in got
    assert calls == [1]


def test_each_request_is_observed_once(endpoint, doubler, body, taken):
    with serve_in_thread(endpoint, doubler) as running:
        exchange(running, request(body, headers="x-request-id: short\r\n"))
        exchange(running, request(b"{", headers="x-request-id: refused\r\n"))
        exchange(running, request(body, path=PATH + "?", headers="x-request-id: long\r\n"))

    with ObservationLog(endpoint.log) as log:
        seen = [(one.request_id, one.status) for one in log.read()]
    assert seen == [("short", 200), ("refused", 400), ("long", 200)]


def test_a_stopping_endpoint_refuses_and_hangs_up(running, body, taken):
    running.state.is_draining = True

    got = exchange(running, request(body))

    assert heads(got) == [b"503"]
    assert b"connection: close" in got
    assert taken == [False]


def test_the_short_way_asks_for_keys_too(endpoint, doubler, body, taken, tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite")
    good, bad = store.create("a", ["infer:doubler"])[0], store.create("b", ["infer:other"])[0]
    access = Access(tmp_path / "keys.sqlite")
    with serve_in_thread(replace(endpoint, access=access), doubler) as running:
        got = [
            heads(exchange(running, request(body, headers=f"authorization: {proof}\r\n")))
            for proof in (
                f"Bearer {good}",
                f"Bearer {bad}",
                f"Bearer {good}x",
                "",
                f"bearer {good}",
            )
        ]

    assert got == [[b"200"], [b"403"], [b"401"], [b"401"], [b"200"]]
    assert taken == [True, False, False, False, False]


def test_a_model_with_workers_goes_the_long_way(endpoint, running, body, taken):
    running.state.runner = type("Busy", (), {"ready": 1, "run": _fail})()

    got = exchange(running, request(body))

    assert heads(got) == [b"500"]
    assert taken == [False]


async def _fail(_self, _feeds):
    raise RuntimeError("asked")
