"""Texts under way: who leaves, who is slow, who comes late, and what company does."""

import asyncio
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fake_decoder import FakeDecoding
from text_server import Gated, events, save_tokenizer, text_of, wait_until

from ingot.observe.log import ObservationLog
from ingot.runtime.generation.text import Tokenizer
from ingot.serve.access.keys import KeyStore
from ingot.serve.app import build_app
from ingot.serve.endpoint import Access, Generation
from ingot.serve.generation.writer import Writer
from ingot.serve.state import Served, State

GENERATE = "/v2/models/writer/generate"
STREAM = "/v2/models/writer/generate_stream"
COMPLETIONS = "/v1/completions"
DRAWN = {"temperature": 1.5, "seed": 5, "max_tokens": 12}


def ask(text="ABC", **parameters):
    return {"text_input": text, "parameters": {"temperature": 0, **parameters}}


def in_threads(*acts):
    """Run functions at the same time and return what they returned."""
    found = [None] * len(acts)

    def run(at):
        found[at] = acts[at]()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return found


def statuses(endpoint):
    with ObservationLog(endpoint.log) as log:
        return [seen.status for seen in log.read()]


def test_a_seed_gives_the_same_text_alone_in_company_and_streamed(serving):
    with serving(FakeDecoding(pages=30)) as (http, running):
        alone = http.post(GENERATE, json=ask(**DRAWN)).json()["text_output"]

        def whole(text):
            return httpx.post(
                running.url + GENERATE, json=ask(text, **DRAWN), trust_env=False, timeout=20
            ).json()["text_output"]  # fmt: skip

        company = in_threads(*(lambda at=at: whole(f"AB{'CDEFGH'[at]}") for at in range(6)))
        streamed = events(http.post(STREAM, json=ask(**DRAWN)))

    assert company[0] == alone
    assert len(set(company)) > 1
    assert "".join(event["text_output"] for event in streamed) == alone


def test_the_protocols_give_the_same_text(http):
    sent = {"model": "writer", "prompt": "ABC", **DRAWN}

    completion = http.post(COMPLETIONS, json=sent).json()["choices"][0]["text"]

    assert completion == http.post(GENERATE, json=ask(**DRAWN)).json()["text_output"]


def test_without_a_seed_the_request_id_seeds_the_draws(http):
    def text(request_id):
        sent = {"text_input": "ABC"}
        return http.post(GENERATE, json=sent, headers={"x-request-id": request_id}).json()

    assert text("one") == text("one")
    assert text("one")["text_output"] != text("two")["text_output"]


class Smile(FakeDecoding):
    """Writes one smile, whose four bytes are four tokens."""

    def step(self, work):
        super().step(work)
        scores = np.zeros((len(work), self.vocab), np.float32)
        for row, (number, _) in enumerate(work):
            scores[row, (len(self.rows[number]) - 1) % 4 + 1] = 9
        return scores


@pytest.mark.parametrize("path", [STREAM, COMPLETIONS])
def test_pieces_are_whole_characters(serving, model, path):
    # the letters that stand for the bytes of the smile, as GPT-2 spells them
    save_tokenizer(model.path, ("A", "ð", "Ł", "ĺ", "Ģ"))
    sent = ask("A", max_tokens=8) if path == STREAM else {
        "model": "writer", "prompt": "A", "max_tokens": 8, "temperature": 0, "stream": True,
    }  # fmt: skip
    with serving(Smile()) as (http, _):
        found = events(http.post(path, json=sent))

    rows = [event for event in found if event != "[DONE]"]
    texts = [row["text_output"] if path == STREAM else row["choices"][0]["text"] for row in rows]
    assert texts == ["😀", "😀"]


def test_a_caller_who_hangs_up_frees_the_room_within_a_step(serving, endpoint):
    decoding = Gated()
    with serving(decoding) as (http, _):
        decoding.shut()
        decoding.gate.release(2)
        with http.stream("POST", STREAM, json=ask(max_tokens=90)) as answer:
            lines = answer.iter_lines()
            next(lines)
        before = len(decoding.steps)
        wait_until(lambda: not http.get("/v2/health/ready").is_error)  # the server noticed by now
        decoding.gate.release(1)
        wait_until(lambda: not decoding.rows)

    assert len(decoding.steps) <= before + 2  # one was let through before, one after
    assert statuses(endpoint) == [499]


def test_hanging_up_on_a_whole_text_ends_it_too(serving):
    decoding = Gated()
    with serving(decoding) as (http, running):
        decoding.shut()
        decoding.gate.release(1)
        with pytest.raises(httpx.ReadTimeout):
            http.post(GENERATE, json=ask(max_tokens=90), timeout=0.3)
        wait_until(lambda: len(decoding.steps) == 1)
        http.get("/v2/health/live")
        decoding.gate.release(1)
        wait_until(lambda: not decoding.rows)
        wait_until(lambda: not running.state.in_flight)


def test_a_late_text_is_504_and_its_room_is_free(serving):
    decoding = Gated()
    with serving(decoding) as (http, _):
        decoding.shut()
        answer = http.post(GENERATE, json=ask(), headers={"ingot-timeout-ms": "50"})
        decoding.gate.release(5)
        wait_until(lambda: not decoding.rows)

    assert answer.status_code == 504


def test_a_stream_that_becomes_late_says_so_in_its_last_event(serving, endpoint):
    decoding = Gated()
    with serving(decoding) as (http, _):
        decoding.shut()
        decoding.gate.release(1)
        answer = http.post(STREAM, json=ask(), headers={"ingot-timeout-ms": "1000"})
        decoding.gate.release(5)

    assert answer.status_code == 200
    assert "within 1 s" in events(answer)[-1]["error"]
    assert statuses(endpoint) == [504]


def test_a_stream_that_breaks_says_so_in_the_form_of_each_protocol(serving, endpoint):
    text = text_of("ABC", 8)
    poison = ord(text[3]) - ord("A")
    assert text.index(text[3]) == 3
    sent = {"model": "writer", "prompt": "ABC", "temperature": 0, "stream": True}
    with serving(FakeDecoding(poison=[poison])) as (http, _):
        extension = events(http.post(STREAM, json=ask()))
        completion = events(http.post(COMPLETIONS, json=sent))

    assert "poisoned" in extension[-1]["error"]
    assert "".join(event.get("text_output", "") for event in extension) == text[:4]
    assert "poisoned" in completion[-2]["error"]["message"]
    assert completion[-1] == "[DONE]"
    assert statuses(endpoint) == [424, 424]


def test_more_texts_than_may_wait_get_429(serving):
    decoding = Gated()
    settings = Generation(most_running=1, most_waiting=2)
    with serving(decoding, generation=settings) as (http, running):
        decoding.shut()

        def whole():
            return httpx.post(running.url + GENERATE, json=ask(), trust_env=False, timeout=20)

        threads = [threading.Thread(target=whole) for _ in range(2)]
        for thread in threads:
            thread.start()
        runner = running.state.runner
        wait_until(lambda: runner.load.running + runner.load.waiting == 2)
        refused = http.post(GENERATE, json=ask())
        also = http.post(COMPLETIONS, json={"model": "writer", "prompt": "ABC"})
        decoding.gate.release(100)
        for thread in threads:
            thread.join(timeout=20)

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert (also.status_code, also.headers["retry-after"]) == (429, "1")
    assert also.json()["error"]["code"] == "rate_limit_exceeded"


def test_draining_refuses_new_texts_and_finishes_those_under_way(serving):
    decoding = Gated()
    with serving(decoding, drain_s=20) as (http, running):
        decoding.shut()
        found = {}

        def whole():
            sent = ask(max_tokens=5)
            url = running.url + GENERATE
            found["text"] = httpx.post(url, json=sent, trust_env=False, timeout=20).json()

        caller = threading.Thread(target=whole)
        caller.start()
        wait_until(lambda: running.state.in_flight == 1)
        stopper = threading.Thread(target=running.stop)
        stopper.start()
        wait_until(lambda: running.state.is_draining)
        refused = http.post(GENERATE, json=ask())
        decoding.gate.release(50)
        caller.join(timeout=20)
        stopper.join(timeout=20)

    assert refused.status_code == 503
    assert found["text"]["text_output"] == text_of("ABC", 5)


def test_a_text_that_outlasts_draining_is_cut_off_in_words(serving, endpoint):
    decoding = Gated()
    with serving(decoding, drain_s=0.05) as (http, running):
        decoding.shut()
        decoding.gate.release(1)
        stopper = threading.Thread(target=running.stop)
        with http.stream("POST", STREAM, json=ask(max_tokens=90)) as answer:
            lines = answer.iter_lines()
            next(lines)
            stopper.start()
            *_, last = [line for line in lines if line]
        decoding.gate.release(100)
        stopper.join(timeout=20)

    assert "it is stopping" in last
    assert statuses(endpoint) == [503]


def test_keys_are_asked_for_and_models_shown_to_those_who_may_see_them(serving, tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite")
    key, _ = store.create("reader", ["infer:writer"])
    other, _ = store.create("other", ["infer:else"])
    sent = {"model": "writer", "prompt": "ABC", "max_tokens": 1}
    with serving(access=Access(keys=tmp_path / "keys.sqlite")) as (http, _):
        found = [
            (http.post(GENERATE, json=ask(), headers=proof).status_code,
             http.post(COMPLETIONS, json=sent, headers=proof).status_code,
             [row["id"] for row in http.get("/v1/models", headers=proof).json().get("data", [])])
            for proof in ({}, {"authorization": f"Bearer {other}"},
                          {"authorization": f"Bearer {key}"})
        ]  # fmt: skip

    assert found == [(401, 401, []), (403, 403, []), (200, 200, ["writer", "writer:3"])]


class Caller:
    """Speaks ASGI to an application, reading one message at a time when it likes."""

    def __init__(self, app, path, sent):
        self.app, self.path, self.sent = app, path, json.dumps(sent).encode()
        self.got, self.room, self.gone = [], asyncio.Semaphore(0), asyncio.Event()
        self.is_sent = False

    async def receive(self):
        if not self.is_sent:
            self.is_sent = True
            return {"type": "http.request", "body": self.sent, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.room.acquire()
        self.got.append(message)

    async def call(self):
        scope = {
            "type": "http", "method": "POST", "path": self.path, "raw_path": self.path.encode(),
            "query_string": b"", "root_path": "", "headers": [], "http_version": "1.1",
            "scheme": "http", "server": None, "client": None, "state": {},
        }  # fmt: skip
        await self.app(scope, self.receive, self.send)


@pytest.fixture
def direct(endpoint):
    """Give `direct(decoding, most_unread)`: an application without a server."""
    writers = []

    def make(decoding, most_unread):
        tokenizer = Tokenizer(endpoint.model.tokenizer_path)
        writer = Writer(decoding, tokenizer, Generation(), ends=(), most_unread=most_unread)
        writers.append(writer)
        state = State(is_warm=True, runner=writer)
        app = build_app([Served(replace(endpoint, log=None), state)])
        return SimpleNamespace(app=app, writer=writer, state=state)

    yield make
    for writer in writers:
        with writer:
            continue


def test_a_slow_reader_is_given_up_and_does_not_keep_the_others_waiting(direct):
    decoding = FakeDecoding()
    made = direct(decoding, most_unread=4)

    async def scene():
        slow = Caller(made.app, STREAM, ask(max_tokens=60))
        quick = Caller(made.app, GENERATE, ask("AB", max_tokens=60))
        quick.room.release()
        quick.room.release()
        reading = asyncio.create_task(slow.call())
        await asyncio.wait_for(quick.call(), 20)
        while decoding.rows:
            await asyncio.sleep(0.002)
        for _ in range(20):
            slow.room.release()
        await asyncio.wait_for(reading, 20)
        return slow, quick

    slow, quick = asyncio.run(scene())

    assert json.loads(quick.got[1]["body"])["text_output"] == text_of("AB", 60)
    body = b"".join(message.get("body", b"") for message in slow.got)
    assert b"4 pieces wait for this one" in body
    assert body.count(b"data:") < 20


def test_the_caller_of_a_protocol_without_more_messages_is_no_busy_loop(direct):
    decoding = Gated()
    made = direct(decoding, most_unread=100)

    async def scene():
        caller = Caller(made.app, STREAM, ask(max_tokens=90))
        for _ in range(9):
            caller.room.release()
        decoding.shut()
        running = asyncio.create_task(caller.call())
        decoding.gate.release(3)
        while len(decoding.steps) < 3:
            await asyncio.sleep(0.002)
        caller.gone.set()
        await asyncio.sleep(0.05)
        decoding.gate.release(1)
        await asyncio.wait_for(running, 20)
        return len(decoding.steps)

    steps = asyncio.run(scene())

    assert steps <= 4
    assert decoding.rows == {}
    assert made.state.in_flight == 0
