import json

import httpx
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.models.model import Signature, TensorSpec
from ingot.serve.client import predict
from ingot.serve.datatypes import NUMPY_OF, from_bytes, to_bytes, wire_name
from ingot.serve.problems import RequestError
from ingot.serve.protocol import decode_request, encode_binary_response

INFER = "/v2/models/doubler/infer"
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
X = np.array([[1.5, -2.0]], np.float32)
MASK = np.array([1], np.int64)


def message(tensors, **more):
    """Write a request whose tensors are `(name, array, size)`; a size of None puts them in JSON."""
    inputs, tail = [], b""
    for name, array, size in tensors:
        row = {"name": name, "shape": array.shape, "datatype": wire_name(array.dtype.name)}
        if size is None:
            row["data"] = array.ravel().tolist()
        else:
            row["parameters"] = {"binary_data_size": size}
            tail += array.tobytes()
        inputs.append(row)
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + tail, str(len(head))


def decode(tensors, specs):
    body, length = message(tensors)
    return decode_request(body, Signature(specs, ()), length=length).feeds


@pytest.mark.parametrize("dtype", sorted(NUMPY_OF.values()))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_array_survives_the_wire_bit_by_bit_nan_and_infinity_too(dtype, data):
    array = data.draw(hnp.arrays(dtype, SHAPES))
    axes = tuple(f"axis{i}" for i in range(array.ndim))
    specs = (TensorSpec("x", dtype, axes),)

    back = decode([("x", array, array.nbytes)], specs)["x"]

    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert back.flags.aligned
    assert back.flags.writeable
    np.testing.assert_array_equal(from_bytes(to_bytes(array), dtype, array.shape), array)


def test_binary_and_json_tensors_may_stand_side_by_side():
    specs = (TensorSpec("x", "float32", ("n", 2)), TensorSpec("mask", "int64", ("n",)))

    feeds = decode([("mask", MASK, 8), ("x", X, None)], specs)

    np.testing.assert_array_equal(feeds["x"], X)
    np.testing.assert_array_equal(feeds["mask"], MASK)


@pytest.mark.parametrize(
    ("size", "cut", "extra", "length", "complaint"),
    [
        (7, 0, b"", None, "must be 8"),
        (True, 0, b"", None, "must be 8"),
        ("8", 0, b"", None, "must be 8"),
        (-8, 0, b"", None, "must be 8"),
        (8, 3, b"", None, "got 5"),
        (8, 0, b"xy", None, "2 belong to none"),
        (8, 0, b"", "99999", "at most"),
        (8, 0, b"", "-1", "at most"),
        (8, 0, b"", "1e3", "at most"),
        (8, 0, b"", "3", "Open Inference Protocol"),
    ],
)
def test_a_binary_body_that_does_not_add_up_is_refused(size, cut, extra, length, complaint):
    body, right = message([("x", X, size)])
    body = body[: len(body) - cut] + extra
    signature = Signature((TensorSpec("x", "float32", ("n", 2)),), ())

    with pytest.raises(RequestError, match=complaint) as caught:
        decode_request(body, signature, length=length or right)

    assert caught.value.status == 400


def test_bytes_in_the_header_without_the_length_are_refused():
    body, _ = message([("x", X, 8)])

    with pytest.raises(RequestError, match="Open Inference Protocol"):
        decode_request(body, Signature((TensorSpec("x", "float32", ("n", 2)),), ()))


def test_a_size_without_the_length_is_refused():
    row = {
        "name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8},
    }  # fmt: skip

    with pytest.raises(RequestError, match="must have the header"):
        decode_request(
            json.dumps({"inputs": [row]}).encode(),
            Signature((TensorSpec("x", "float32", ("n", 2)),), ()),
        )


def test_a_tensor_in_json_and_in_bytes_is_refused():
    row = {
        "name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2],
        "parameters": {"binary_data_size": 8},
    }  # fmt: skip
    head = json.dumps({"inputs": [row]}).encode()

    with pytest.raises(RequestError, match="Drop one"):
        decode_request(
            head + X.tobytes(),
            Signature((TensorSpec("x", "float32", ("n", 2)),), ()),
            length=str(len(head)),
        )


def test_a_boolean_that_is_neither_0_nor_1_is_refused():
    body, length = message([("b", np.array([True, False]), 2)])
    body = body[:-1] + b"\x02"

    with pytest.raises(RequestError, match="bytes 0 or 1"):
        decode_request(body, Signature((TensorSpec("b", "bool", ("n",)),), ()), length=length)


@pytest.mark.parametrize(
    ("parameters", "asked", "as_bytes"),
    [
        ({"binary_data_output": True}, None, {"y", "z"}),
        ({}, {"y": {"binary_data": True}, "z": {}}, {"y"}),
        ({"binary_data_output": True}, {"y": {"binary_data": False}, "z": {}}, {"z"}),
        ({}, None, set()),
    ],
)
def test_outputs_come_as_they_are_asked_for(parameters, asked, as_bytes):
    specs = (TensorSpec("x", "float32", ("n", 2)),)
    outputs = tuple(TensorSpec(name, "float32", ("n",)) for name in ("y", "z"))
    more = {"parameters": parameters}
    if asked is not None:
        more["outputs"] = [{"name": n, "parameters": p} for n, p in asked.items()]
    body, length = message([("x", X, 8)], **more)

    inference = decode_request(body, Signature(specs, outputs), length=length)

    assert inference.as_bytes == as_bytes


def test_a_binary_answer_is_json_then_the_bytes_in_order():
    specs = (TensorSpec("x", "float32", ("n", 2)),)
    outputs = tuple(TensorSpec(name, "float32", ("n",)) for name in ("y", "z"))
    body, length = message([("x", X, 8)], outputs=[
        {"name": "z", "parameters": {"binary_data": True}}, {"name": "y"},
    ])  # fmt: skip
    inference = decode_request(body, Signature(specs, outputs), length=length)
    arrays = {"y": np.array([1.5], np.float32), "z": np.array([np.nan], np.float32)}

    answer, json_bytes = encode_binary_response(arrays, inference, model="m", version="1")

    head = json.loads(answer[:json_bytes])
    assert head["outputs"] == [
        {"name": "z", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "y", "datatype": "FP32", "shape": [1], "data": [1.5]},
    ]
    assert answer[json_bytes:] == arrays["z"].tobytes()


def test_an_endpoint_speaks_it_in_both_directions(http):
    content, length = message(
        [("x", X, 8), ("mask", MASK, 8)], parameters={"binary_data_output": True}
    )

    answer = http.post(INFER, content=content, headers={"inference-header-content-length": length})

    json_bytes = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert [t["parameters"] for t in json.loads(answer.content[:json_bytes])["outputs"]] == [
        {"binary_data_size": 8}, {"binary_data_size": 1},
    ]  # fmt: skip
    assert answer.content[json_bytes:] == (X * 2).tobytes() + b"\x01"


def test_the_server_says_that_it_speaks_it(http):
    assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]


def test_our_client_carries_nan_and_infinity_in_bytes(running):
    inputs = {"x": np.array([[np.inf, np.nan]], np.float32), "mask": MASK}

    outputs, headers = predict(running.url, "doubler", inputs, binary=True)

    np.testing.assert_array_equal(outputs["y"], inputs["x"])
    assert outputs["kept"].tolist() == [True]
    assert headers["content-type"] == "application/octet-stream"


def test_an_error_of_a_binary_request_is_a_problem_document(http):
    answer = http.post(INFER, content=b"x", headers={"inference-header-content-length": "5"})

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


def test_tritonclient_is_answered_in_bytes_and_in_json(running):
    client = pytest.importorskip("tritonclient.http")
    server = client.InferenceServerClient(httpx.URL(running.url).netloc.decode())
    for binary in (True, False):
        inputs = [client.InferInput("x", [1, 2], "FP32"), client.InferInput("mask", [1], "INT64")]
        inputs[0].set_data_from_numpy(X, binary_data=binary)
        inputs[1].set_data_from_numpy(MASK, binary_data=binary)
        outputs = [client.InferRequestedOutput("y", binary_data=binary)]

        answer = server.infer("doubler", inputs, outputs=outputs)

        np.testing.assert_array_equal(answer.as_numpy("y"), X * 2)
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("doubler")
    assert server.get_model_metadata("doubler")["inputs"][0]["datatype"] == "FP32"
    with pytest.raises(client.InferenceServerException, match="No model is named"):
        server.get_model_metadata("nope")
    server.close()
