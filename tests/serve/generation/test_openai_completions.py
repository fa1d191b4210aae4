"""OpenAI's completions, against the published shapes."""

import jsonschema
import pytest
from text_server import LETTERS, events, text_of

URL = "/v1/completions"
LOGPROBS = {
    "type": "object",
    "required": ["text_offset", "token_logprobs", "tokens", "top_logprobs"],
    "properties": {
        "text_offset": {"type": "array", "items": {"type": "integer"}},
        "token_logprobs": {"type": "array", "items": {"type": "number"}},
        "tokens": {"type": "array", "items": {"type": "string"}},
        "top_logprobs": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": {"type": "number"}},
        },
    },
}
CHOICE = {
    "type": "object",
    "required": ["finish_reason", "index", "logprobs", "text"],
    "properties": {
        "finish_reason": {"enum": ["stop", "length", "content_filter", None]},
        "index": {"type": "integer"},
        "logprobs": {"anyOf": [LOGPROBS, {"type": "null"}]},
        "text": {"type": "string"},
    },
}
COUNT = {"type": "integer"}
USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
}
COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "text_completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "system_fingerprint": {"type": "string"},
        "choices": {"type": "array", "items": CHOICE},
        "usage": {"anyOf": [USAGE, {"type": "null"}]},
    },
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "param", "code"],
            "properties": {
                "type": {"type": "string"}, "message": {"type": "string"},
                "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
            },
        }
    },
}  # fmt: skip


def ask(prompt, **more):
    return {"model": "writer", "prompt": prompt, "temperature": 0, **more}


def test_a_completion_has_the_published_shape(http):
    body = http.post(URL, json=ask("ABC", max_tokens=6, logprobs=2)).json()

    jsonschema.validate(body, COMPLETION)
    (choice,) = body["choices"]
    text = text_of("ABC", 6)
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert choice["logprobs"]["tokens"] == list(text)
    assert choice["logprobs"]["text_offset"] == list(range(6))
    assert [len(row) for row in choice["logprobs"]["top_logprobs"]] == [2] * 6
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


def test_a_stream_has_the_published_shape_and_the_same_text(http):
    sent = ask("ABC", max_tokens=6, stream=True, stream_options={"include_usage": True})

    *chunks, counts, done = events(http.post(URL, json=sent))

    for chunk in (*chunks, counts):
        jsonschema.validate(chunk, COMPLETION)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text_of("ABC", 6)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["length"]
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert (counts["choices"], counts["usage"]["total_tokens"]) == ([], 9)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_the_defaults_are_those_of_the_api(http):
    body = http.post(URL, json={"model": "writer", "prompt": "ABC"}).json()

    assert body["usage"]["completion_tokens"] == 16


def test_offsets_of_a_stream_go_on_where_the_last_piece_ended(http):
    *chunks, _ = events(http.post(URL, json=ask("ABC", max_tokens=3, logprobs=0, stream=True)))

    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [1], [2]]


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_may_be_echoed(http, stream):
    answer = http.post(URL, json=ask("ABC", max_tokens=2, echo=True, stream=stream))

    rows = events(answer)[:-1] if stream else [answer.json()]
    text = "".join(row["choices"][0]["text"] for row in rows)
    assert text == "ABC" + text_of("ABC", 2)


@pytest.mark.parametrize("prompt", [[0, 1, 2], [[0, 1, 2]], ["ABC"]])
def test_a_prompt_may_be_tokens_or_one_in_a_list(http, prompt):
    body = http.post(URL, json=ask(prompt, max_tokens=4)).json()

    assert body["choices"][0]["text"] == text_of("ABC", 4)


def test_a_stop_string_ends_the_text(http):
    text = text_of("ABC", 8)

    body = http.post(URL, json=ask("ABC", stop=text[3])).json()

    assert body["choices"][0]["text"] == text[: text.index(text[3])]
    assert body["choices"][0]["finish_reason"] == "stop"


def test_null_is_the_same_as_nothing(http):
    sent = ask("ABC", stop=None, logprobs=None, seed=None, max_tokens=None, stream_options=None)

    assert http.post(URL, json=sent).json()["choices"][0]["text"] == text_of("ABC", 16)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"n": 2}, "n must be 1"),
        ({"best_of": 3}, "best_of must be 1"),
        ({"suffix": "x"}, "suffix must be"),
        ({"frequency_penalty": 0.5}, "frequency_penalty must be"),
        ({"logit_bias": {"5": -100}}, "logit_bias must be"),
        ({"temperature": 2.5}, "temperature must be between 0 and 2"),
        ({"stop": ["A"] * 5}, "at most 4"),
        ({"logprobs": 6}, "between 0 and 5"),
        ({"logprobs": 1, "echo": True}, "echo must be false"),
        ({"prompt": ["A", "B"]}, "one text or one list"),
        ({"prompt": [0, "B"]}, "one text or one list"),
        ({"prompt": ""}, "1 to 100 tokens"),
        ({"prompt": [99]}, "Token ids must be"),
        ({"stream_options": {"include_usage": True}}, "stream=true"),
        ({"max_tokens": "many"}, "$.max_tokens"),
        ({"top_n": 3}, "No parameter is called 'top_n'"),
        ({"model": 5}, "$.model"),
        ({"model": None}, "`model`"),
    ],
)
def test_refusals_have_the_form_of_the_api(http, more, words):
    answer = http.post(URL, json=ask("ABC") | more)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    jsonschema.validate(body, ERROR)
    assert words in body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("content", "status"), [("{", 400), ("[]", 400), ("x" * 5000, 413)])
def test_bodies_that_are_none_get_the_form_of_the_api(http, content, status):
    answer = http.post(URL, content=content)

    assert answer.status_code == status
    jsonschema.validate(answer.json(), ERROR)


def test_an_unknown_model_is_not_found(http):
    answer = http.post(URL, json=ask("ABC", model="riter"))

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "Did you mean 'writer'" in answer.json()["error"]["message"]


def test_models_are_listed_by_name_and_by_version(http):
    body = http.get("/v1/models").json()

    assert body["object"] == "list"
    assert [row["id"] for row in body["data"]] == ["writer", "writer:3"]
    for row in body["data"]:
        assert set(row) == {"id", "object", "created", "owned_by"}
        assert row["object"] == "model"
    assert http.get("/v1/models/writer:3").json() == body["data"][1]
    jsonschema.validate(http.get("/v1/models/reader").json(), ERROR)


def test_a_version_may_be_asked_for_by_its_number(http):
    body = http.post(URL, json=ask("ABC", model="writer:3", max_tokens=2)).json()

    assert (body["model"], body["choices"][0]["text"]) == ("writer:3", text_of("ABC", 2))


def test_chat_without_a_template_is_not_found_with_the_reason(http):
    sent = {"model": "writer", "messages": [{"role": "user", "content": "ABC"}]}

    answer = http.post("/v1/chat/completions", json=sent)

    assert answer.status_code == 404
    assert "a chat template" in answer.json()["error"]["message"]


def test_the_api_only_takes_posts(http):
    answer = http.get(URL)

    assert answer.status_code == 405
    jsonschema.validate(answer.json(), ERROR)


def test_log_probabilities_are_those_of_the_scores(http):
    import numpy as np
    from fake_decoder import scores_after

    body = http.post(URL, json=ask("ABC", max_tokens=1, logprobs=1)).json()

    scores = scores_after([0, 1, 2]).astype(np.float64)
    logs = scores - np.log(np.exp(scores).sum())
    (top,) = body["choices"][0]["logprobs"]["top_logprobs"]
    assert top == {LETTERS[logs.argmax()]: pytest.approx(logs.max())}
