"""Open Inference Protocol v2 over REST: what a request must be, what an answer looks like.

The protocol is the one KServe, Triton and MLServer clients speak
(https://github.com/kserve/open-inference-protocol). Tensors travel as JSON or, by its binary
extension, as raw bytes; see `ingot.serve.binary`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np

from ingot.core.names import suggest
from ingot.data.data import Array
from ingot.models.model import Signature, TensorSpec
from ingot.serve.binary import SIZE, Tail, split_body, wants_bytes
from ingot.serve.datatypes import NUMPY_OF, kind_of, to_bytes, wire_name
from ingot.serve.finite import need_finite_inputs, need_finite_outputs
from ingot.serve.problems import RequestError

_NESTED = re.compile(rb"\s*\[\s*\[")
_EMPTY = msgspec.Raw()
_KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": float | None}  # a JSON null is NaN


# Any below: the protocol lets a parameter be a string, a number or a boolean; those of the binary
# extension are acted upon.
class InferInput(msgspec.Struct):
    """One input tensor of a request; `data` stays undecoded until its type is known."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = _EMPTY
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct):
    """One output that the caller wants."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """A request as it arrives."""

    inputs: list[InferInput]
    id: str | None = None
    outputs: list[RequestedOutput] | None = None
    parameters: dict[str, Any] = {}


class OutputTensor(msgspec.Struct):
    """One output tensor of an answer; `data` is flat, row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[bool] | list[int] | list[float]


class BinaryTensor(msgspec.Struct):
    """One output tensor of an answer whose bytes come after the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int]


class InferResponse(msgspec.Struct, omit_defaults=True):
    """An answer."""

    model_name: str
    model_version: str
    outputs: Sequence[OutputTensor | BinaryTensor]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """A request that fits the model.

    Attributes:
        feeds: Every input of the signature by name.
        outputs: Names of the outputs to answer with, in the caller's order.
        id: The caller's id, echoed in the answer.
        as_bytes: Those of the outputs that are asked for as bytes.
        finite_only: Whether its answer must be finite, as its inputs are.
    """

    feeds: Mapping[str, Array]
    outputs: tuple[str, ...]
    id: str | None = None
    as_bytes: frozenset[str] = frozenset()
    finite_only: bool = False


_REQUEST = msgspec.json.Decoder(InferRequest)
_ENCODER = msgspec.json.Encoder()


def decode_request(
    body: bytes, signature: Signature, *, length: str | None = None, finite_only: bool = False
) -> Inference:
    """Read a request body and check it against a signature.

    Args:
        body: JSON of an infer request, tensor data flat (row-major) or nested; with `length`, that
            many bytes of JSON and then tensors as bytes.
        signature: What the model takes and gives.
        length: Header `Inference-Header-Content-Length`, if the request has it.
        finite_only: Refuse NaN and infinities, in the request and in its answer.

    Raises:
        RequestError: Not JSON, not a request, or tensors that do not fit (status 400).
    """
    data, tail = split_body(body, length)
    try:
        request = _REQUEST.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(
            f"The body must be an Open Inference Protocol v2 request; got: {error}. "
            'Send {"inputs": [{"name", "shape", "datatype", "data"}]}.'
        ) from error
    feeds = _feeds(request.inputs, signature.inputs, tail)
    if tail is not None:
        tail.end()
    if finite_only:
        need_finite_inputs(feeds)
    known = tuple(spec.name for spec in signature.outputs)
    asked = request.outputs or ()
    wanted = tuple(output.name for output in asked) or known
    for name in wanted:
        if name not in known:
            raise RequestError(f"No output is named {name!r}. {suggest(name, known)}")
    if not asked and not request.parameters:
        return Inference(feeds, wanted, request.id, finite_only=finite_only)
    own = {output.name: output.parameters for output in asked}
    as_bytes = {name for name in wanted if wants_bytes(own.get(name, {}), request.parameters)}
    return Inference(feeds, wanted, request.id, frozenset(as_bytes), finite_only)


def encode_response(
    outputs: Mapping[str, Array], inference: Inference, *, model: str, version: str
) -> bytes:
    """Write an answer.

    A float is written with the digits that read back to the same number in its own precision.
    JSON has no NaN and no infinity: both become null.

    Args:
        outputs: Arrays by output name.
        inference: The request that is answered.
        model: Name of the model.
        version: Its version number.

    Raises:
        RequestError: An output has a type that JSON cannot carry, or is not finite where the
            request asks for that (status 500).
    """
    if inference.finite_only:
        need_finite_outputs(outputs, inference.outputs)
    tensors = [_tensor(name, outputs[name]) for name in inference.outputs]
    return _ENCODER.encode(InferResponse(model, version, tensors, inference.id))


def encode_binary_response(
    outputs: Mapping[str, Array], inference: Inference, *, model: str, version: str
) -> tuple[bytes, int]:
    """Write an answer whose outputs, or some of them, are bytes after the JSON.

    Args:
        outputs: Arrays by output name.
        inference: The request that is answered.
        model: Name of the model.
        version: Its version number.

    Returns:
        The body, and how many bytes of it are JSON.

    Raises:
        RequestError: As `encode_response`.
    """
    if inference.finite_only:
        need_finite_outputs(outputs, inference.outputs)
    tensors: list[OutputTensor | BinaryTensor] = []
    tail: list[bytes] = []
    for name in inference.outputs:
        array = outputs[name]
        if name not in inference.as_bytes:
            tensors.append(_tensor(name, array))
            continue
        datatype = _carried(name, array)
        tail.append(to_bytes(array))
        tensors.append(BinaryTensor(name, datatype, array.shape, {SIZE: len(tail[-1])}))
    head = _ENCODER.encode(InferResponse(model, version, tensors, inference.id))
    return b"".join((head, *tail)), len(head)


def encode_request(feeds: Mapping[str, Array]) -> bytes:
    """Write a request that holds these arrays."""
    return _ENCODER.encode({"inputs": [_tensor(name, feeds[name]) for name in feeds]})


def decode_tensor(tensor: InferInput, spec: TensorSpec, tail: Tail | None = None) -> Array:
    """Return the array that a request's tensor holds.

    Args:
        tensor: As received.
        spec: The model's input of the same name; a string in its shape is any size from 1 up.
        tail: The bytes after the JSON, where a binary tensor takes its own from.

    Raises:
        RequestError: Datatype, shape, count or values do not fit.
    """
    _check_type(tensor, spec)
    _check_shape(tensor, spec)
    if tensor.parameters and SIZE in tensor.parameters:
        return _from_tail(tensor, spec, tail)
    return _from_json(tensor, spec, bytes(tensor.data))


def _from_tail(tensor: InferInput, spec: TensorSpec, tail: Tail | None) -> Array:
    if bytes(tensor.data):
        raise RequestError(
            f"Input {spec.name!r} must be in JSON or in bytes; got 'data' and {SIZE}. Drop one."
        )
    if tail is None:
        raise RequestError(
            f"A request with {SIZE} must have the header Inference-Header-Content-Length; got "
            "none. Send the length of the JSON before the tensors."
        )
    return tail.take(spec, tuple(tensor.shape), tensor.parameters[SIZE])


def _from_json(tensor: InferInput, spec: TensorSpec, data: bytes) -> Array:
    if not data:
        raise RequestError(
            f"Input {spec.name!r} must carry JSON in 'data', or bytes after the JSON and their "
            f"number as {SIZE} in its parameters; got neither. Add one."
        )
    nested = _NESTED.match(data) is not None
    shape = tuple(tensor.shape)
    try:
        values = _decoder(kind_of(tensor.datatype), len(shape) if nested else 1).decode(data)
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=spec.dtype)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        raise RequestError(
            f"Data of input {spec.name!r} must be {tensor.datatype} numbers, flat or nested as "
            f"{list(shape)}; got: {error}. Send values that fit the datatype."
        ) from error
    # JSON cannot hold an infinity, so one here is a number too large for the type
    if array.dtype.kind == "f" and np.isinf(array).any():
        raise RequestError(
            f"Data of input {spec.name!r} must fit {tensor.datatype}; got a number beyond "
            f"{np.finfo(array.dtype).max}. Scale the input."
        )
    if (nested and array.shape != shape) or array.size != math.prod(shape):
        got = f"nested as {list(array.shape)}" if nested else f"{array.size} numbers"
        raise RequestError(
            f"Data of input {spec.name!r} must fill its shape {list(shape)} "
            f"({math.prod(shape)} numbers); got {got}. Correct shape or data."
        )
    return array.reshape(shape)


def _feeds(
    tensors: Sequence[InferInput], specs: Sequence[TensorSpec], tail: Tail | None
) -> dict[str, Array]:
    known = {spec.name: spec for spec in specs}
    feeds: dict[str, Array] = {}
    for tensor in tensors:
        spec = known.get(tensor.name)
        if spec is None:
            raise RequestError(f"No input is named {tensor.name!r}. {suggest(tensor.name, known)}")
        if tensor.name in feeds:
            raise RequestError(f"Input {tensor.name!r} must be given once; got it twice. Drop one.")
        feeds[tensor.name] = decode_tensor(tensor, spec, tail)
    missing = [name for name in known if name not in feeds]
    if missing:
        raise RequestError(
            f"Every input must be given; {', '.join(map(repr, missing))} missing, "
            f"got {', '.join(map(repr, feeds)) or 'none'}. Add what is missing."
        )
    if len(specs) > 1:
        _check_axes(feeds, specs)
    return feeds


def _check_axes(feeds: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for axis, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
            if not isinstance(axis, str):
                continue
            first, owner = sizes.setdefault(axis, (size, spec.name))
            if first != size:
                raise RequestError(
                    f"Axis {axis!r} must have one size in all inputs; got {first} in {owner!r} "
                    f"and {size} in {spec.name!r}. Pad or cut one of them."
                )


def _check_type(tensor: InferInput, spec: TensorSpec) -> None:
    expected = wire_name(spec.dtype)
    if tensor.datatype != expected:
        raise RequestError(
            f"Datatype of input {spec.name!r} must be {expected}; got {tensor.datatype!r}. "
            f"Send it as {expected}."
        )
    if expected not in NUMPY_OF:
        raise RequestError(
            f"Input {spec.name!r} is {expected}, which this endpoint cannot read. "
            f"Serve a model whose inputs are among {', '.join(NUMPY_OF)}."
        )


def _check_shape(tensor: InferInput, spec: TensorSpec) -> None:
    if len(tensor.shape) == len(spec.shape):
        for axis, size in zip(spec.shape, tensor.shape, strict=True):
            if size < 1 or (axis != size and not isinstance(axis, str)):
                break
        else:
            return
    shown = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
    raise RequestError(
        f"Shape of input {spec.name!r} must be {shown} (-1 is any size from 1 up); "
        f"got {tensor.shape}. Reshape the input."
    )


@cache
def _decoder(kind: str, depth: int) -> "msgspec.json.Decoder[Any]":  # lists nested to a depth
    shape: Any = _KINDS[kind]
    for _ in range(max(1, depth)):
        shape = list[shape]
    return msgspec.json.Decoder(shape)


@cache
def _wire_of(dtype: "np.dtype[Any]") -> str:  # numpy builds a dtype's name anew each time
    return wire_name(dtype.name)


def _tensor(name: str, array: Array) -> OutputTensor:
    return OutputTensor(name, _carried(name, array), array.shape, array.ravel().tolist())


def _carried(name: str, array: Array) -> str:
    datatype = _wire_of(array.dtype)
    if datatype not in NUMPY_OF:
        raise RequestError(
            f"Output {name!r} is {datatype}, which JSON cannot carry. Serve a model whose outputs "
            f"are among {', '.join(NUMPY_OF)}.",
            status=500,
        )
    return datatype
