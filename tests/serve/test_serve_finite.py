"""An endpoint that takes and gives finite numbers only, through each of its doors."""

import json
from dataclasses import replace

import httpx
import numpy as np
import pytest
from test_serve_rpc import infer_request, stub_of

from ingot.core.errors import ServeError
from ingot.models.model import Signature, TensorSpec
from ingot.serve.client import predict
from ingot.serve.endpoint import Endpoint, Generation
from ingot.serve.problems import RequestError
from ingot.serve.protocol import Inference, decode_request, encode_binary_response, encode_response
from ingot.serve.server import check_endpoints, serve_in_thread

INFER = "/v2/models/doubler/infer"
MASK = np.array([1], np.int64)


@pytest.fixture
def finite(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, finite_only=True)


def overflow(feeds):
    with np.errstate(over="ignore"):
        return {"y": feeds["x"] * np.float32(2), "kept": feeds["mask"] > 0}


def ask(url, body):
    return httpx.post(url + INFER, json=body, trust_env=False, timeout=10)


def test_a_null_is_refused_with_the_input_and_the_index_of_the_first(finite, doubler, body):
    body["inputs"][0]["data"] = [1.5, 2.0, None, None]

    with serve_in_thread(finite, doubler) as running:
        answer = ask(running.url, body)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Input 'x' must be finite; got nan at index [1, 0]." in answer.json()["detail"]


def test_without_being_asked_to_an_endpoint_lets_nan_through(http, body):
    body["inputs"][0]["data"] = [1.5, 2.0, None, 4.0]

    answer = http.post(INFER, json=body)

    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["data"] == [3.0, 4.0, None, 8.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bytes_that_are_not_finite_are_refused(finite, doubler, value):
    x = np.array([[1.0, value]], np.float32)

    with serve_in_thread(finite, doubler) as running, pytest.raises(ServeError) as caught:
        predict(running.url, "doubler", {"x": x, "mask": MASK}, binary=True)

    assert f"Input 'x' must be finite; got {value} at index [0, 1]" in str(caught.value)


@pytest.mark.parametrize("inline_bytes", [0, 4096])
def test_an_answer_that_overflows_is_500_with_the_reason(finite, doubler, body, inline_bytes):
    doubler.run = overflow
    body["inputs"][0]["data"] = [1.5, 3e38, 0.1, 4.0]

    with serve_in_thread(finite, doubler) as running:
        running.state.inline_bytes = inline_bytes
        answer = ask(running.url, body)

    assert answer.status_code == 500
    assert "Output 'y' must be finite; the model gave inf at index [0, 1]" in answer.text


def test_finite_numbers_are_answered_as_ever(finite, doubler, body):
    with serve_in_thread(finite, doubler) as running:
        answer = ask(running.url, body)

    assert answer.json()["outputs"][0]["data"] == [3.0, 4.0, pytest.approx(0.2), 8.0]


def test_a_grpc_caller_is_refused_in_the_same_words(finite, doubler):
    grpc = pytest.importorskip("grpc")
    x = np.array([[np.nan, 1.0]], np.float32)

    with serve_in_thread(replace(finite, grpc_port=0), doubler) as running:
        ask_rpc, channel = stub_of(grpc, running)
        with pytest.raises(grpc.RpcError) as caught:
            ask_rpc("ModelInfer", infer_request(x))
        channel.close()

    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert "Input 'x' must be finite; got nan at index [0, 0]" in caught.value.details()


def test_only_the_outputs_that_are_asked_for_are_looked_at():
    outputs = {"y": np.array([1.0]), "log": np.array([-np.inf])}
    inference = Inference({}, ("y",), finite_only=True)

    assert json.loads(encode_response(outputs, inference, model="m", version="1"))["outputs"]
    with pytest.raises(RequestError, match=r"'log' must be finite; the model gave -inf"):
        encode_binary_response(
            outputs, replace(inference, outputs=("log",)), model="m", version="1"
        )


def test_a_scalar_is_looked_at_too():
    signature = Signature((TensorSpec("t", "float64", ()),), ())
    body = b'{"inputs": [{"name": "t", "shape": [], "datatype": "FP64", "data": [null]}]}'

    with pytest.raises(RequestError, match=r"'t' must be finite; got nan at index \[\]"):
        decode_request(body, signature, finite_only=True)


def test_a_model_that_writes_texts_cannot_be_asked_for_finite_numbers(finite, monkeypatch):
    monkeypatch.setattr("ingot.serve.generation.writer.check_generation", lambda endpoint: None)

    with pytest.raises(ServeError, match=r"doubler:3 writes texts\. Leave --finite"):
        check_endpoints((replace(finite, generation=Generation()),))
