"""Texts over gRPC: the raw call, whatever client makes it."""

import json
import queue
import threading
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from fake_decoder import FakeDecoding
from hypothesis import given
from hypothesis import strategies as st
from text_server import Gated, text_of, wait_until

from ingot.observe.log import ObservationLog
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access, Rate
from ingot.serve.problems import RequestError
from ingot.serve.rpc.messages import SERVICE, messages
from ingot.serve.rpc.texts import text_request

FINAL = "triton_final_response"


class Calls:
    """One stream: send requests, read answers, leave."""

    def __init__(self, port, **more):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.sent = queue.Queue()
        rpc = self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages()["ModelStreamInferResponse"].FromString,
        )
        self.call = rpc(iter(self.sent.get, None), timeout=more.pop("timeout", 20), **more)

    def send(self, *requests):
        for request in requests:
            self.sent.put(request)

    def rest(self):
        self.sent.put(None)
        return list(self.call)


@pytest.fixture
def streaming(serving):
    """Give `streaming(decoding, **fields) -> (calls(**metadata), client, running)`."""
    opened = []

    def start(decoding=None, **changes):
        stack = serving(decoding, grpc_port=0, **changes)
        http, running = stack.__enter__()

        def calls(**more):
            found = Calls(running.grpc_port, **more)
            opened.append(found.channel)
            return found

        opened.append(stack)
        return SimpleNamespace(calls=calls, http=http, running=running)

    yield start
    for one in reversed(opened):
        one.close() if hasattr(one, "close") else one.__exit__(None, None, None)


def strings(*words):
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


def ask(text="ABC", name="a", model="writer", empty_end=False, **parameters):
    request = messages()["ModelInferRequest"](model_name=model, id=name)
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(strings(text.encode()))
    for key, value in {"temperature": 0, "max_tokens": 5, **parameters}.items():
        kind = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
        setattr(request.parameters[key], f"{kind}_param", value)
    if empty_end:
        request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def text_in(answer):
    raw = b"".join(answer.infer_response.raw_output_contents)
    assert int.from_bytes(raw[:4], "little") == len(raw) - 4
    return raw[4:].decode()


def is_final(answer):
    return answer.infer_response.parameters[FINAL].bool_param


def observed(endpoint):
    with ObservationLog(endpoint.log) as log:
        return [(seen.request_id, seen.status, seen.client) for seen in log.read()]


def test_every_piece_is_an_answer_and_the_last_says_so(streaming):
    calls = streaming().calls()
    calls.send(ask(max_tokens=5))

    found = calls.rest()

    assert [text_in(answer) for answer in found] == list(text_of("ABC", 5))
    assert [is_final(answer) for answer in found] == [False] * 4 + [True]
    assert {(a.infer_response.model_name, a.infer_response.id) for a in found} == {("writer", "a")}
    row = found[0].infer_response.outputs[0]
    assert (row.name, row.datatype, list(row.shape)) == ("text_output", "BYTES", [1])
    last = found[-1].infer_response.parameters
    assert last["finish_reason"].string_param == "length"
    assert last["usage"].string_param == '{"prompt_tokens": 3, "generated_tokens": 5}'


def test_an_empty_end_is_apart_from_the_last_piece_where_it_is_asked_for(streaming):
    calls = streaming().calls()
    calls.send(ask(max_tokens=2, empty_end=True))

    *pieces, end = calls.rest()

    assert [text_in(answer) for answer in pieces] == list(text_of("ABC", 2))
    assert not any(is_final(answer) for answer in pieces)
    assert is_final(end)
    assert (end.infer_response.id, len(end.infer_response.outputs)) == ("a", 0)


def test_several_texts_in_one_stream_grow_side_by_side_and_keep_their_ids(streaming):
    decoding = Gated()
    made = streaming(decoding)
    calls = made.calls()
    decoding.shut()
    calls.send(ask("ABC", "one"), ask("BC", "two", max_tokens=3))
    wait_until(lambda: made.running.state.in_flight == 2)
    decoding.gate.release(100)

    found = {"one": "", "two": ""}
    for answer in calls.rest():
        found[answer.infer_response.id] += text_in(answer)

    assert found == {"one": text_of("ABC", 5), "two": text_of("BC", 3)}
    assert any(len(step) == 2 for step in decoding.steps)


def test_tensors_are_parameters_by_their_names(streaming):
    request = ask(max_tokens=9)
    del request.parameters["max_tokens"]
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1])
    request.raw_input_contents.append(np.array([3], np.int32).tobytes())
    request.inputs.add(name="stop", datatype="BYTES", shape=[2])
    request.raw_input_contents.append(strings(b"xx", b"yy"))
    calls = streaming().calls()
    calls.send(request)

    assert "".join(map(text_in, calls.rest())) == text_of("ABC", 3)


def test_typed_contents_are_read_too(streaming):
    request = messages()["ModelInferRequest"](model_name="writer")
    request.inputs.add(
        name="text_input", datatype="BYTES", shape=[1], contents={"bytes_contents": [b"ABC"]}
    )
    request.inputs.add(
        name="temperature", datatype="FP32", shape=[1], contents={"fp32_contents": [0]}
    )
    request.inputs.add(
        name="stop_token_ids", datatype="INT64", shape=[1], contents={"int64_contents": [99]}
    )
    calls = streaming().calls()
    calls.send(request)

    assert "".join(map(text_in, calls.rest())) == text_of("ABC", 20)


def test_a_text_may_come_as_a_whole(streaming):
    calls = streaming().calls()
    calls.send(ask(stream=False))

    (found,) = calls.rest()

    assert (text_in(found), is_final(found)) == (text_of("ABC", 5), True)


def change_text(raw):
    def change(request):
        request.raw_input_contents[0] = raw

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (change_text(b"\x09\x00\x00\x00ABC"), "ends after the tensor"),
        (change_text(b"AB"), "ends after the tensor"),
        (change_text(strings(b"\xff")), "UTF-8"),
        (change_text(strings(b"A", b"B")), "elements of its shape"),
        (lambda r: setattr(r.inputs[0], "datatype", "BF16"), "'BF16'"),
        (lambda r: setattr(r.inputs[0], "name", "prompt"), "text_input"),
        (lambda r: r.outputs.add(name="logits"), "one output, 'text_output'"),
        (lambda r: r.raw_input_contents.append(b""), "all 1 inputs or for none"),
        (lambda r: setattr(r.parameters["temprature"], "int64_param", 0), "temperature"),
        (lambda r: setattr(r.parameters["top_p"], "double_param", float("nan")), "JSON"),
        (lambda r: setattr(r, "model_version", "9"), "writer"),
        (lambda r: setattr(r, "model_name", "wrter"), "Did you mean 'writer'"),
    ],
)
def test_what_does_not_fit_is_an_error_in_the_stream_and_the_next_is_answered(
    streaming, change, complaint
):
    bad = ask(name="bad")
    change(bad)
    calls = streaming().calls()
    calls.send(bad, ask(name="good"))

    found = calls.rest()

    (error,) = [answer for answer in found if answer.error_message]
    assert complaint in error.error_message
    assert (error.infer_response.id, is_final(error)) == ("bad", True)
    pieces = [text_in(answer) for answer in found if not answer.error_message]
    assert "".join(pieces) == text_of("ABC", 5)


def test_a_text_that_breaks_ends_with_an_error_and_its_neighbours_go_on(streaming):
    text = text_of("ABC", 8)
    poison = ord(text[3]) - ord("A")
    assert text.index(text[3]) == 3
    neighbour = next(word for word in ("B", "C", "D", "BC") if text[3] not in text_of(word, 5))
    calls = streaming(FakeDecoding(poison=[poison])).calls()
    calls.send(ask(name="bad", max_tokens=8), ask(neighbour, "good"))

    found = calls.rest()

    bad = [answer for answer in found if answer.infer_response.id == "bad"]
    assert [text_in(answer) for answer in bad[:-1]] == list(text[:4])
    assert "poisoned" in bad[-1].error_message
    good = [answer for answer in found if answer.infer_response.id == "good"]
    assert "".join(map(text_in, good)) == text_of(neighbour, 5)


@given(
    raw=st.binary(max_size=40),
    datatype=st.sampled_from(["BYTES", "FP32", "INT64", "BOOL", "BF16", "", "x"]),
    shape=st.lists(st.integers(-2, 5), max_size=3),
    name=st.sampled_from(["text_input", "stop", "stop_token_ids", "parameters", "id", "stream"]),
)
def test_tensors_of_any_bytes_are_read_or_refused(raw, datatype, shape, name):
    request = ask()
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)
    try:
        path, body = text_request(request)
    except RequestError:
        return

    assert path.startswith("/v2/models/writer/generate")
    json.loads(body)


def test_a_page_that_fails_is_an_error_in_the_stream(streaming, caplog):
    made = streaming()

    def fail(*_, **__):
        raise RuntimeError("secret")

    made.running.state.runner.text = fail
    calls = made.calls()
    calls.send(ask())

    (answer,) = calls.rest()
    assert "secret" not in answer.error_message
    assert answer.error_message
    assert "secret" in caplog.text


def test_leaving_the_call_stops_the_writing(streaming, endpoint):
    decoding = Gated()
    made = streaming(decoding)
    calls = made.calls()
    decoding.shut()
    decoding.gate.release(2)
    calls.send(ask(max_tokens=90))
    next(calls.call)
    calls.call.cancel()

    def goes_on():
        decoding.gate.release(1)
        return decoding.rows

    wait_until(lambda: not goes_on())
    wait_until(lambda: not made.running.state.in_flight)
    made.running.stop()

    assert len(decoding.steps) < 80
    assert observed(endpoint) == [("a", 499, "")]


def test_the_deadline_of_the_call_ends_a_text_and_its_own_timeout_does_too(streaming, endpoint):
    decoding = Gated()
    made = streaming(decoding)
    calls = made.calls()
    decoding.shut()
    calls.send(ask(name="short", timeout=50_000))
    (answer,) = calls.rest()
    late = made.calls(timeout=0.2)
    late.send(ask(name="late"))
    try:  # whoever notices first says it
        words = late.rest()[0].error_message
    except grpc.RpcError as error:
        words = error.code().name
    decoding.gate.release(50)
    wait_until(lambda: not made.running.state.in_flight)
    made.running.stop()

    assert "within 0.05 s" in answer.error_message
    assert words == "DEADLINE_EXCEEDED" or "must be answered within" in words
    assert dict(row[:2] for row in observed(endpoint))["short"] == 504
    assert dict(row[:2] for row in observed(endpoint))["late"] in {499, 504}


def test_each_request_is_one_observation_and_is_counted(streaming, endpoint):
    made = streaming()
    calls = made.calls(metadata=[("x-request-id", "call"), ("ingot-unit", "robot")])
    calls.send(ask(name="r1"), ask(name=""), ask(name="r2", model="nobody"))
    calls.rest()
    page = made.http.get("/metrics").text
    made.running.stop()

    rows = {name: status for name, status, _ in observed(endpoint)}
    (unnamed,) = rows.keys() - {"r1", "r2"}
    assert rows == {"r1": 200, "r2": 404, unnamed: 200}
    assert unnamed not in {"", "call"}
    assert 'ingot_generated_tokens_total{model="writer",version="3"} 10.0' in page


def test_keys_and_rates_hold_for_every_request_of_a_stream(streaming, tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite")
    key, _ = store.create("reader", ["infer:writer"])
    made = streaming(access=Access(keys=tmp_path / "keys.sqlite"), rate=Rate(0.001, 2))
    without = made.calls()
    without.send(ask())
    known = made.calls(metadata=[("authorization", f"Bearer {key}")])
    known.send(*(ask(name=str(at), max_tokens=1) for at in range(3)))
    refused = without.rest()[0].error_message
    found = known.rest()

    assert "key" in refused
    assert sum(is_final(answer) for answer in found if not answer.error_message) == 2
    assert sum("requests" in answer.error_message for answer in found) == 1


def test_more_requests_than_a_call_takes_at_a_time_wait_for_their_turn(streaming):
    calls = streaming().calls()
    calls.send(*(ask("ABC", str(at), max_tokens=1) for at in range(150)))

    found = calls.rest()

    assert {answer.infer_response.id for answer in found} == {str(at) for at in range(150)}
    assert {text_in(answer) for answer in found} == {text_of("ABC", 1)}


def test_a_stream_that_is_open_does_not_keep_the_server_from_stopping(streaming):
    made = streaming()
    calls = made.calls()
    calls.send(ask())
    found = [next(calls.call) for _ in range(5)]
    stopper = threading.Thread(target=made.running.stop)
    stopper.start()
    stopper.join(timeout=20)

    assert is_final(found[-1])
    assert not stopper.is_alive()
