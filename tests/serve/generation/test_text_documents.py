"""The OpenAPI document of an endpoint that writes texts, and requests of any shape."""

import json

import jsonschema
import openapi_spec_validator
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_fuzzer import fuzz
from text_server import events

MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
KNOBS = st.dictionaries(
    st.sampled_from([
        "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop",
        "seed", "stop_token_ids", "ignore_eos", "logprobs", "details", "stream", "echo", "n",
    ]),
    st.integers(-2, 9) | st.just(2**70) | st.floats(0, 2) | st.booleans()
    | st.lists(st.text(max_size=2) | st.integers(-1, 30), max_size=3) | JSON,
    max_size=4,
)  # fmt: skip
TEXTS = st.text(alphabet="ABCDEFGHIJ", max_size=5) | st.text(max_size=5) | JSON


@pytest.mark.parametrize("body", [{"text_input": "ABC"}, {"model": "writer", "prompt": "ABC"}])
def test_the_document_names_every_path_and_every_way_it_answers(http, body):
    document = http.get("/openapi.json").json()

    for path in ("/v2/models/writer", "/v2/models/writer/versions/3"):
        assert {path + "/generate", path + "/generate_stream"} <= set(document["paths"])
        assert path + "/infer" not in document["paths"]
    for path, methods in document["paths"].items():
        for method in methods:
            named = path.replace("{name}", "writer")
            sent = json.dumps(body) if method == "post" else None
            answer = http.request(method.upper(), named, content=sent)
            assert str(answer.status_code) in methods[method]["responses"], path


def test_the_document_holds_every_parameter_and_no_dangling_reference(http):
    document = http.get("/openapi.json").json()

    def asked(path):
        body = document["paths"][path]["post"]["requestBody"]["content"]
        return body["application/json"]["schema"]

    parameters = asked("/v2/models/writer/generate")["properties"]["parameters"]
    assert {"max_tokens", "stop", "stop_token_ids", "ignore_eos"} <= set(parameters["properties"])
    assert asked("/v1/completions")["required"] == ["model", "prompt"]
    refs = json.dumps(document).count('"$ref"')
    assert refs == json.dumps(document).count('"$ref": "#/components/schemas/Problem"')


def test_the_document_is_openapi_3_1(http):
    openapi_spec_validator.validate(http.get("/openapi.json").json())


def test_a_fuzzer_that_reads_the_document_finds_nothing(serving, tmp_path):
    with serving() as (_, running):
        # a deadline of a millisecond is rightly a 504, which a fuzzer takes for a failure
        done = fuzz(tmp_path, running.url, "--header", "ingot-timeout-ms: 60000")

    assert done.returncode == 0, done.stdout[-6000:]


def test_the_events_of_a_stream_fit_the_document(http):
    document = http.get("/openapi.json").json()
    path = "/v2/models/writer/generate_stream"
    found = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    data = found["schema"]["properties"]["data"]["contentSchema"]

    sent = events(http.post(path, json={"text_input": "ABC", "parameters": {"details": True}}))

    assert len(sent) > 1
    for event in sent:
        jsonschema.validate(event, data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"text": "A"}, data)


def check(answer, kind):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == kind
        assert answer.json()["error"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert events(answer)


@MANY
@given(text=TEXTS, knobs=KNOBS, path=st.sampled_from(["generate", "generate_stream"]))
def test_requests_of_any_shape_get_a_text_or_a_refusal(http, text, knobs, path):
    sent = {"text_input": text, "parameters": knobs}

    check(http.post(f"/v2/models/writer/{path}", json=sent), "application/problem+json")


@MANY
@given(prompt=TEXTS | st.lists(st.integers(-1, 25), max_size=4), knobs=KNOBS)
def test_completions_of_any_shape_get_a_text_or_a_refusal(http, prompt, knobs):
    sent = {"model": "writer", "prompt": prompt, **knobs}

    check(http.post("/v1/completions", json=sent), "application/json")


@MANY
@given(content=st.binary(max_size=200), path=st.sampled_from(["completions", "chat/completions"]))
def test_bytes_get_a_refusal(http, content, path):
    answer = http.post(f"/v1/{path}", content=content)

    check(answer, "application/json")
