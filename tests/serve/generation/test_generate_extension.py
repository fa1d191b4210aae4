"""The generate extension of the Open Inference Protocol, against its published schema."""

import hashlib

import jsonschema
import pytest
from fake_decoder import FakeDecoding
from text_server import LETTERS, events, text_of

from ingot.observe.log import ObservationLog

GENERATE = "/v2/models/writer/generate"
STREAM = "/v2/models/writer/generate_stream"
GREEDY = {"temperature": 0}
# generate_rest.yaml of kserve/open-inference-protocol
TOKEN = {
    "type": "object",
    "required": ["id", "text", "logprob", "special"],
    "properties": {
        "id": {"type": "integer", "minimum": 0}, "logprob": {"type": "number"},
        "special": {"type": "boolean"}, "text": {"type": "string"},
    },
}  # fmt: skip
REASON = {"type": "string", "enum": ["length", "eos_token", "stop_sequence"]}
RESPONSE = {
    "type": "object",
    "required": ["text_output", "model_name"],
    "properties": {
        "text_output": {"type": "string"},
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "details": {
            "type": "object",
            "required": ["finish_reason", "logprobs"],
            "properties": {
                "finish_reason": REASON, "logprobs": {"type": "array", "items": TOKEN},
            },
        },
    },
}  # fmt: skip


def ask(text, **parameters):
    return {"text_input": text, "parameters": parameters}


def test_a_text_is_continued_and_the_answer_has_the_published_shape(http):
    answer = http.post(GENERATE, json=ask("ABC", max_tokens=6, details=True, **GREEDY))

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    jsonschema.validate(body, RESPONSE)
    assert body["text_output"] == text_of("ABC", 6)
    assert (body["model_name"], body["model_version"]) == ("writer", "3")
    assert body["details"]["finish_reason"] == "length"
    assert "".join(row["text"] for row in body["details"]["logprobs"]) == text_of("ABC", 6)
    assert body["usage"] == {"prompt_tokens": 3, "generated_tokens": 6}


def test_details_come_only_when_they_are_asked_for(http):
    assert "details" not in http.post(GENERATE, json=ask("ABC")).json()


def test_a_stream_is_events_whose_texts_are_the_whole_text(http):
    answer = http.post(STREAM, json=ask("ABC", max_tokens=6, **GREEDY))

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = events(answer)
    for event in found:
        jsonschema.validate(event, RESPONSE)
    assert len(found) == 6
    assert "".join(event["text_output"] for event in found) == text_of("ABC", 6)
    assert [event.get("finish_reason") for event in found] == [None] * 5 + ["length"]


def test_the_details_of_a_stream_have_one_token_an_event(http):
    found = events(http.post(STREAM, json=ask("ABC", max_tokens=3, logprobs=2, **GREEDY)))

    for event in found:
        jsonschema.validate(event["details"]["token"], TOKEN)
        assert len(event["details"]["token"]["top_logprobs"]) == 2
    # the schema asks for a reason in every event, and has none for a text that goes on
    assert [event["details"]["finish_reason"] for event in found] == [None, None, "length"]


def test_parameters_may_stand_beside_the_text_as_tritons_clients_send_them(http):
    answer = http.post(GENERATE, json={"text_input": "ABC", "max_tokens": 4, **GREEDY})

    assert answer.json()["text_output"] == text_of("ABC", 4)


def test_the_defaults_are_those_of_the_specification(http):
    body = http.post(GENERATE, json=ask("ABC")).json()

    assert body["usage"]["generated_tokens"] == 20


def test_the_path_of_a_version_answers_like_that_of_the_model(http):
    sent = ask("ABC", **GREEDY)

    versioned = http.post("/v2/models/writer/versions/3/generate", json=sent)

    assert versioned.json() == http.post(GENERATE, json=sent).json()


def test_a_stop_string_and_an_end_token_are_told_apart(http):
    text = text_of("ABC", 8)
    by_text = http.post(GENERATE, json=ask("ABC", stop=[text[3]], **GREEDY)).json()
    token = LETTERS.index(text[3])
    by_token = http.post(GENERATE, json=ask("ABC", stop_token_ids=[token], **GREEDY)).json()

    assert by_text["text_output"] == by_token["text_output"] == text[: text.index(text[3])]
    assert by_text["finish_reason"] == "stop_sequence"
    assert by_token["finish_reason"] == "eos_token"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "must be a JSON object"),
        ("[1]", 400, "must be a JSON object"),
        ("{}", 422, "text_input must be text; got null."),
        ('{"text_input": 5}', 422, "text_input must be text; got 5."),
        ('{"text_input": "A", "parameters": [1]}', 422, "parameters must be an object; got [1]."),
        ('{"text_input": "A", "parameters": 0}', 422, "parameters must be an object; got 0."),
        ('{"text_input": "A", "temprature": 1}', 422, "Did you mean 'temperature'"),
        ('{"text_input": "A", "max_tokens": "9"}', 422, "$.max_tokens"),
        ('{"text_input": "A", "max_tokens": 0}', 422, "max_tokens must be"),
        ('{"text_input": "A", "top_p": 2}', 422, "top_p must be between"),
        ('{"text_input": "A", "logprobs": 21}', 422, "at most 20"),
        ('{"text_input": "A", "stop": [""]}', 422, "at least one character"),
        ('{"text_input": "A", "stream": true}', 422, "/generate_stream"),
        ('{"text_input": ""}', 422, "1 to 100 tokens"),
    ],
)
def test_bad_requests_are_refused_in_words(http, body, status, words):
    answer = http.post(GENERATE, content=body)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["error"]


def test_a_stream_that_cannot_begin_is_a_plain_refusal(http):
    answer = http.post(STREAM, json=ask("A" * 101))

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_unknown_model_and_another_method_are_refused(http):
    assert http.post("/v2/models/riter/generate", json=ask("A")).status_code == 404
    assert http.get(GENERATE).status_code == 405


def test_tensors_are_refused_with_the_way_to_go(http):
    tensor = {"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [1]}

    answer = http.post("/v2/models/writer/infer", json={"inputs": [tensor]})

    assert answer.status_code == 404
    assert "/generate" in answer.json()["error"]


def test_a_step_that_fails_is_a_generation_error(serving):
    with serving(FakeDecoding(poison=[7])) as (http, _):
        assert http.post(GENERATE, json=ask("H")).status_code == 424
        assert http.post(STREAM, json=ask("H")).status_code == 424
        assert http.post(GENERATE, json=ask("A", max_tokens=1)).status_code == 200


def test_each_text_is_one_observation_with_digests_of_what_went_in_and_out(serving, endpoint):
    with serving() as (http, _):
        http.post(STREAM, json=ask("ABC", max_tokens=4, **GREEDY), headers={"x-request-id": "r1"})
    with ObservationLog(endpoint.log) as log:
        (seen,) = log.read()

    text = text_of("ABC", 4).encode()
    assert (seen.request_id, seen.status, seen.version) == ("r1", 200, endpoint.version.digest)
    assert seen.output_ref == "sha256:" + hashlib.sha256(text).hexdigest()
    assert seen.latency_ms > 0


def test_metrics_count_tokens_and_the_time_to_the_first(http):
    http.post(GENERATE, json=ask("ABC", max_tokens=6, **GREEDY))

    text = http.get("/metrics").text

    label = '{model="writer",version="3"}'
    for row in (
        f"ingot_generated_tokens_total{label} 6.0", f"ingot_prompt_tokens_total{label} 3.0",
        f"ingot_first_token_seconds_count{label} 1.0", f"ingot_token_seconds_count{label} 1.0",
        f"ingot_texts_running{label} 0.0", f"ingot_cache_use{label} 0.0",
        f"ingot_text_preemptions_total{label} 0.0",
    ):  # fmt: skip
        assert row in text
