"""Whatever is sent: no answer is a 5xx, and every refusal is a problem document."""

import json
import socket
from dataclasses import replace
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingot.models.model import Signature, TensorSpec
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Endpoint
from ingot.serve.openapi import openapi
from ingot.serve.server import serve_in_thread

FEW = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
INFER = "/v2/models/cnn/infer"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
TENSORS = st.fixed_dictionaries({
    "name": st.sampled_from(["image", "x", ""]),
    "datatype": st.sampled_from(["FP32", "FP64", "INT64", "BYTES", ""]) | st.text(max_size=4),
    "shape": st.lists(st.integers(-2, 9) | st.just(2**63), max_size=5) | st.just([1, 1, 8, 8]),
    "data": st.just([0.5] * 64) | st.just([1e300] * 64) | JSON,
}) | JSON  # fmt: skip
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | JSON},
    optional={
        "id": JSON, "parameters": JSON,
        "outputs": JSON
        | st.lists(st.fixed_dictionaries({"name": st.text(max_size=6)}), max_size=2),
    },
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from([
        "inference-header-content-length", "ingot-timeout-ms", "ingot-step", "ingot-unit",
        "x-request-id", "content-type", "authorization", "content-encoding", "expect",
    ]),
    st.just("identity")
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(str.strip),
    max_size=4,
)  # fmt: skip


@pytest.fixture
def served(cnn):
    version = Version("cnn", 1, cnn.digest, cnn.digest, EngineConfig(threads=1), "t", 0)
    endpoint = Endpoint(version, cnn, port=0, read_timeout_s=5)
    with (
        serve_in_thread(endpoint) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client,
    ):
        yield client


def check(answer):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["detail"]


@MANY
@given(request=REQUESTS, headers=HEADERS)
def test_requests_of_any_shape_get_an_answer_or_a_refusal(served, request, headers):
    check(served.post(INFER, content=json.dumps(request).encode(), headers=headers))


@FEW
@given(content=st.binary(max_size=300), headers=HEADERS)
def test_bytes_get_a_refusal(served, content, headers):
    check(served.post(INFER, content=content, headers=headers))


@FEW
@given(
    size=st.integers(-5, 300) | st.just(2**70), tail=st.binary(max_size=260),
    shape=st.just([1, 1, 8, 8]) | st.lists(st.integers(0, 9), max_size=4), shift=st.integers(-3, 3),
)  # fmt: skip
def test_binary_bodies_get_an_answer_or_a_refusal(served, size, tail, shape, shift):
    tensor = {
        "name": "image", "datatype": "FP32", "shape": shape,
        "parameters": {"binary_data_size": size},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head) + shift)}

    check(served.post(INFER, content=head + tail, headers=headers))


@FEW
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    path=st.lists(st.text(max_size=6), max_size=6).map(
        lambda words: "/" + "/".join(quote(word, safe="") for word in words)
    )
    | st.sampled_from(["/v2", "/metrics", "/v2/models/cnn", "/v2/health/ready", "/openapi.json"]),
)
def test_any_path_and_method_gets_a_page_or_a_refusal(served, method, path):
    answer = served.request(method, str(served.base_url).rstrip("/") + path)
    if method != "HEAD":
        check(answer)
    assert answer.status_code < 500


@FEW
@given(sent=st.binary(min_size=1, max_size=200))
def test_bytes_that_are_not_http_get_a_refusal_or_a_closed_connection(served, sent):
    parts = urlsplit(str(served.base_url))
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(sent + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)

    assert not answer or int(answer.split()[1]) < 500


def test_tokens_beyond_the_vocabulary_are_422(encoder):
    config = EngineConfig(threads=1)
    version = Version("enc", 1, encoder.digest, encoder.digest, config, "t", 0)
    ids, mask = ({"name": n, "shape": [1, 2], "datatype": "INT64"} for n in
                 ("input_ids", "attention_mask"))  # fmt: skip
    with serve_in_thread(Endpoint(version, encoder, port=0)) as running:
        answers = [
            httpx.post(
                running.url + "/v2/models/enc/infer", trust_env=False,
                json={"inputs": [ids | {"data": [1, token]}, mask | {"data": [1, 1]}]},
            ).status_code
            for token in (2, 99_999)
        ]  # fmt: skip

    assert answers == [200, 422]


def test_the_document_names_every_path_that_is_served(served):
    document = served.get("/openapi.json").json()

    for path, methods in document["paths"].items():
        for method in methods:
            answer = served.request(method.upper(), path)
            assert str(answer.status_code) in methods[method]["responses"], path
    assert "/v2/models/cnn/versions/1/infer" in document["paths"]


def test_the_document_says_what_the_model_takes():
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 4)), TensorSpec("b", "bool", ())),
        (TensorSpec("y", "float32", ("batch",)),),
    )
    from pathlib import Path

    from ingot.models.model import Lineage, Model

    model = Model(Path(), "sha256:0", signature, Lineage("onnx"), "m")
    version = Version("m", 7, "sha256:0", "sha256:0", EngineConfig(), "t", 0)
    endpoint = Endpoint(version, model)

    document = openapi(
        [endpoint, replace(endpoint, version=replace(version, number=6))], version="1"
    )

    body = document["paths"]["/v2/models/m/infer"]["post"]["requestBody"]["content"]
    x, b = body["application/json"]["schema"]["properties"]["inputs"]["items"]["oneOf"]
    assert x["properties"]["shape"]["prefixItems"] == [
        {"type": "integer", "minimum": 1}, {"type": "integer", "const": 4},
    ]  # fmt: skip
    assert b["properties"]["data"]["items"] == {"type": "boolean"}
    assert "/v2/models/m/versions/6/infer" in document["paths"]
