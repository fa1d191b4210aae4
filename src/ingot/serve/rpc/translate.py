"""gRPC requests as requests of the REST application, and its answers as gRPC answers.

The application keeps everything that a request must pass: keys, limits, deadlines, batching, the
observation log. A gRPC request goes through it as a message of the binary extension, so both doors
give the same answers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from ingot.serve.binary import ALL_WANTED, LENGTH_HEADER, SIZE
from ingot.serve.datatypes import NUMPY_OF, to_bytes
from ingot.serve.problems import RequestError
from ingot.serve.rpc.messages import messages

# Any below: messages are classes made at run time, and ASGI's are open mappings.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


def infer_path(request: Any) -> str:
    """Return the path of an inference."""
    return model_path(request.model_name, request.model_version) + "/infer"


def model_path(name: str, version: str) -> str:
    """Return the path of a model; an empty version means the one that answers for the name."""
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def infer_body(request: Any) -> tuple[bytes, int]:
    """Return a `ModelInferRequest` as a message of the binary extension, and the size of its JSON.

    Raises:
        RequestError: Tensors are neither all raw nor all typed, or hold values of another type.
    """
    tails = raw_contents(request) or [contents(tensor) for tensor in request.inputs]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {SIZE: len(tail)},
        }
        for tensor, tail in zip(request.inputs, tails, strict=True)
    ]
    head: dict[str, Any] = {"inputs": inputs, "parameters": {ALL_WANTED: True}}
    if request.outputs:
        head["outputs"] = [{"name": output.name} for output in request.outputs]
    if request.id:
        head["id"] = request.id
    text = msgspec.json.encode(head)
    return b"".join((text, *tails)), len(text)


def raw_contents(request: Any) -> list[bytes]:
    """Return the raw tensors of a request; none if they are typed.

    Raises:
        RequestError: They are neither all raw nor all typed.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"Raw contents must be given for all {len(request.inputs)} inputs or for none; got "
            f"{len(raw)}. Send every tensor in raw_input_contents."
        )
    return raw


def infer_answer(body: bytes, headers: Mapping[bytes, bytes]) -> Any:
    """Return an answer of the application as a `ModelInferResponse`.

    Args:
        body: Its body.
        headers: Its headers by name.
    """
    size = int(headers[LENGTH_HEADER])
    head = json.loads(body[:size])
    answer = messages()["ModelInferResponse"](
        model_name=head["model_name"], model_version=head["model_version"], id=head.get("id") or ""
    )
    for tensor in head["outputs"]:
        row = {name: tensor[name] for name in ("name", "datatype", "shape")}
        answer.outputs.add(**row)
        end = size + tensor["parameters"][SIZE]
        answer.raw_output_contents.append(body[size:end])
        size = end
    return answer


def metadata_answer(body: Mapping[str, Any]) -> Any:
    """Return a model's metadata as a `ModelMetadataResponse`."""
    return messages()["ModelMetadataResponse"](
        name=body["name"],
        versions=body["versions"],
        platform=body["platform"],
        inputs=_rows(body["inputs"]),
        outputs=_rows(body["outputs"]),
    )


def _rows(tensors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("name", "datatype", "shape")} for row in tensors]


def contents(tensor: Any) -> bytes:
    """Return the values of a typed tensor as a raw one has them.

    Raises:
        RequestError: They do not fit its datatype, or it has no typed contents.
    """
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise RequestError(
            f"Typed contents of input {tensor.name!r} must be one of {', '.join(_CONTENTS)}; got "
            f"{tensor.datatype!r}. Send it in raw_input_contents."
        )
    values = getattr(tensor.contents, field)
    try:
        # a list: numpy casts what comes as an array, whether it fits or not
        return to_bytes(np.array(list(values), NUMPY_OF[tensor.datatype]))
    except (OverflowError, ValueError) as error:
        raise RequestError(
            f"Typed contents of input {tensor.name!r} must fit {tensor.datatype}; got: {error}. "
            "Send values that fit."
        ) from error
