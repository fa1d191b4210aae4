import json
import math

import hypothesis.extra.numpy as hnp
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.models.model import Signature, TensorSpec
from ingot.serve.datatypes import NUMPY_OF, kind_of, wire_name
from ingot.serve.problems import RequestError
from ingot.serve.protocol import (
    Inference,
    decode_request,
    encode_request,
    encode_response,
)

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)


def signature_of(dtype, shape):
    return Signature((TensorSpec("x", dtype, shape),), (TensorSpec("y", dtype, shape),))


def request(data, *, shape, datatype="FP32", **more):
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def decode(body, dtype="float32", shape=("batch", 2)):
    return decode_request(body, signature_of(dtype, shape)).feeds["x"]


@pytest.mark.parametrize("dtype", sorted(NUMPY_OF.values()))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_array_survives_the_wire_bit_by_bit(dtype, data):
    elements = {"allow_infinity": False} if np.dtype(dtype).kind == "f" else None
    array = data.draw(hnp.arrays(dtype, SHAPES, elements=elements))
    axes = tuple(f"axis{i}" for i in range(array.ndim))

    back = decode(encode_request({"x": array}), dtype, axes)

    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@settings(max_examples=30, deadline=None)
@given(array=hnp.arrays("float32", SHAPES, elements={"allow_nan": False, "allow_infinity": False}))
def test_nested_data_read_like_flat_data(array):
    axes = tuple(f"axis{i}" for i in range(array.ndim))

    nested = decode(request(array.tolist(), shape=list(array.shape)), shape=axes)

    np.testing.assert_array_equal(nested, array)


def test_a_float32_is_written_so_that_it_reads_back_to_the_same_float32():
    array = np.array([[0.1, 1 / 3, 1e-42, 3.4028235e38]], np.float32)
    body = encode_response({"y": array}, Inference({}, ("y",)), model="m", version="1")

    values = json.loads(body)["outputs"][0]["data"]

    assert np.array(values, np.float32).tobytes() == array.tobytes()


def test_null_is_nan_in_and_out():
    array = decode(request([None, 1.0], shape=[1, 2]))
    body = encode_response({"y": array}, Inference({}, ("y",)), model="m", version="1")

    assert math.isnan(array[0, 0])
    assert json.loads(body)["outputs"][0]["data"] == [None, 1.0]


def test_a_scalar_input_takes_one_number():
    array = decode(request([2.5], shape=[]), shape=())

    assert array.shape == ()
    assert array == 2.5


@pytest.mark.parametrize(
    ("dtype", "datatype", "data", "complaint"),
    [
        ("float32", "FP64", [1.0, 2.0], "must be FP32; got 'FP64'"),
        ("float32", "FP32", [1.0], "1 numbers"),
        ("float32", "FP32", [1.0, 2.0, 3.0], "3 numbers"),
        ("float32", "FP32", [[1.0], [2.0]], r"nested as \[2, 1\]"),
        ("float32", "FP32", [[1.0, 2.0], [3.0]], "inhomogeneous"),
        ("float32", "FP32", ["1", "2"], "got `str`"),
        ("float32", "FP32", [True, False], "got `bool`"),
        ("float32", "FP32", [1e39, 0.0], "beyond"),
        ("float16", "FP16", [70000, 0], "beyond"),
        ("int8", "INT8", [128, 0], "out of bounds"),
        ("uint8", "UINT8", [-1, 0], "out of bounds"),
        ("int64", "INT64", [2**63, 0], "INT64"),
        ("int64", "INT64", [1.5, 0], "INT64"),
        ("int64", "INT64", [None, 0], "got `null`"),
        ("bool", "BOOL", [1, 0], "got `int`"),
        ("float32", "FP32", {"a": 1}, "got `object`"),
        ("float32", "FP32", 3, "got `int`"),
    ],
)
def test_data_that_do_not_fit_are_refused(dtype, datatype, data, complaint):
    body = request(data, shape=[1, 2], datatype=datatype)

    with pytest.raises(RequestError, match=complaint) as caught:
        decode(body, dtype)

    assert caught.value.status == 400


@pytest.mark.parametrize("shape", [[2], [1, 3], [0, 2], [-1, 2], [1, 2, 1], [10**12, 2]])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(RequestError, match=r"'x' must"):
        decode(request([1.0, 2.0], shape=shape))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"inputs": 3}', b'{"inputs": [{"name": "x"}]}', b"\xff\xfe",
     b'{"inputs": [{"name": "x", "shape": [1.5], "datatype": "FP32", "data": [1]}]}',
     b"[" * 100_000],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(body):
    with pytest.raises(RequestError, match="must be an Open Inference Protocol v2 request"):
        decode(body)


def test_data_nested_beyond_reason_are_refused():
    deep = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": %b}]}' % (
        b"[" * 5000 + b"]" * 5000
    )

    with pytest.raises(RequestError):
        decode(deep)


def test_bytes_are_refused_with_what_can_be_sent():
    with pytest.raises(RequestError, match="BYTES, which this endpoint cannot read"):
        decode(request(["a", "b"], shape=[1, 2], datatype="BYTES"), "object")


def test_a_tensor_without_data_is_refused_with_both_ways_to_send_it():
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32"}

    with pytest.raises(RequestError, match="JSON in 'data', or bytes after the JSON"):
        decode(json.dumps({"inputs": [tensor]}).encode())


def test_an_unknown_input_is_answered_with_the_nearest():
    spec = TensorSpec("input_ids", "float32", ("batch", 2))
    body = request([1.0, 2.0], shape=[1, 2]).replace(b'"x"', b'"input_id"')

    with pytest.raises(RequestError, match="Did you mean 'input_ids'"):
        decode_request(body, Signature((spec,), ()))


def test_a_missing_input_is_named():
    signature = Signature((TensorSpec("x", "float32", (1,)), TensorSpec("mask", "int64", (1,))), ())

    with pytest.raises(RequestError, match="'mask' missing, got 'x'"):
        decode_request(request([1.0], shape=[1]), signature)


def test_an_input_given_twice_is_refused():
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}

    with pytest.raises(RequestError, match="twice"):
        decode(json.dumps({"inputs": [tensor, tensor]}).encode())


def test_one_axis_has_one_size_in_all_inputs():
    specs = (TensorSpec("a", "float32", ("batch",)), TensorSpec("b", "float32", ("batch",)))
    body = encode_request({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})

    with pytest.raises(RequestError, match="Axis 'batch' must have one size"):
        decode_request(body, Signature(specs, ()))


def test_requested_outputs_and_id_are_kept_and_parameters_accepted():
    body = request([1, 2], shape=[1, 2], id="7", outputs=[{"name": "y"}], parameters={"a": True})

    inference = decode_request(body, signature_of("float32", ("batch", 2)))

    assert (inference.id, inference.outputs) == ("7", ("y",))


def test_an_unknown_output_is_answered_with_the_valid_set():
    body = request([1, 2], shape=[1, 2], outputs=[{"name": "why"}])

    with pytest.raises(RequestError, match=r"No output is named 'why'.*Valid: y"):
        decode(body)


def test_an_output_that_json_cannot_carry_is_our_fault_not_the_callers():
    text = np.array(["a"], dtype=object)

    with pytest.raises(RequestError, match="BYTES") as caught:
        encode_response({"y": text}, Inference({}, ("y",)), model="m", version="1")

    assert caught.value.status == 500


def test_an_answer_without_an_id_has_no_id_field():
    y = {"y": np.ones(1, np.float32)}

    body = encode_response(y, Inference({}, ("y",)), model="m", version="1")

    assert "id" not in msgspec.json.decode(body)


def test_wire_names_name_what_json_cannot_carry_too():
    assert [wire_name(n) for n in ("uint8", "bfloat16", "complex64")] == [
        "UINT8",
        "BF16",
        "COMPLEX64",
    ]
    assert [kind_of(n) for n in ("BOOL", "INT8", "FP16")] == ["bool", "int", "float"]
