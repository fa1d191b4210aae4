"""Texts over gRPC: tensors as a request of the generate extension, and its events as tensors.

The names are those of the backends that write texts under Triton: input `text_input`, output
`text_output`, one string each; whatever else is sent is a parameter of the same name.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ingot.serve.datatypes import NUMPY_OF
from ingot.serve.problems import RequestError
from ingot.serve.rpc.messages import messages
from ingot.serve.rpc.translate import contents, model_path, raw_contents

# Any below: messages are classes made at run time, and events are JSON.
FINAL, _EMPTY_FINAL = "triton_final_response", "triton_enable_empty_final_response"
_TRITONS = {"timeout", "priority", "sequence_id", "sequence_start", "sequence_end", _EMPTY_FINAL}
_OUTPUT = "text_output"
_LISTS = {"stop", "stop_token_ids"}


def wants_empty_end(request: Any) -> bool:
    """Say whether the end of a text is to be told apart from its last piece."""
    return _EMPTY_FINAL in request.parameters and request.parameters[_EMPTY_FINAL].bool_param


def text_request(request: Any) -> tuple[str, bytes]:
    """Return path and body of a request for a text.

    Raises:
        RequestError: A tensor cannot be read, or another output is asked for.
    """
    for output in request.outputs:
        if output.name != _OUTPUT:
            raise RequestError(
                f"A model that writes texts has one output, {_OUTPUT!r}; got {output.name!r}. Ask "
                "for that, or for none.",
                status=422,
            )
    given: dict[str, object] = {}
    raw: list[bytes | None] = [*raw_contents(request)] or [None] * len(request.inputs)
    for tensor, data in zip(request.inputs, raw, strict=True):
        values = _values(tensor, data)
        given[tensor.name] = values if tensor.name in _LISTS or len(values) != 1 else values[0]
    for name, parameter in request.parameters.items():
        if name not in _TRITONS:
            given[name] = getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None)
    kind = "/generate" if given.get("stream") is False else "/generate_stream"
    return model_path(request.model_name, request.model_version) + kind, json.dumps(given).encode()


def text_answers(request: Any, event: Mapping[str, Any]) -> Iterator[Any]:
    """Give an event of the extension as messages of a stream.

    Args:
        request: What it answers.
        event: What more it says becomes parameters: numbers and strings as they are, the rest as
            JSON.
    """
    if "error" in event:
        yield broken(request, event["error"])
        return
    is_over, is_apart = "finish_reason" in event, wants_empty_end(request)
    found = _answer(request, event, is_final=is_over and not is_apart)
    text = event[_OUTPUT].encode()
    found.infer_response.outputs.add(name=_OUTPUT, datatype="BYTES", shape=[1])
    found.infer_response.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
    for name in event.keys() - {_OUTPUT, "model_name", "model_version"}:
        value = event[name]
        words = value if isinstance(value, str) else json.dumps(value)
        found.infer_response.parameters[name].string_param = words
    yield found
    if is_over and is_apart:
        yield _answer(request, event, is_final=True)


def broken(request: Any, words: str) -> Any:
    """Return the message that ends a request with an error; others in its stream go on."""
    found = messages()["ModelStreamInferResponse"](error_message=words)
    found.infer_response.id = request.id
    found.infer_response.parameters[FINAL].bool_param = True
    return found


def _answer(request: Any, event: Mapping[str, Any], *, is_final: bool) -> Any:
    found = messages()["ModelStreamInferResponse"]()
    answer = found.infer_response
    answer.model_name, answer.model_version = event["model_name"], event["model_version"]
    answer.id = request.id
    answer.parameters[FINAL].bool_param = is_final
    return found


def _values(tensor: Any, raw: bytes | None) -> list[Any]:
    try:
        if tensor.datatype == "BYTES":
            rows = tensor.contents.bytes_contents if raw is None else _split(raw)
            values: list[Any] = [row.decode() for row in rows]
        else:
            dtype = np.dtype(NUMPY_OF[tensor.datatype]).newbyteorder("<")
            values = np.frombuffer(contents(tensor) if raw is None else raw, dtype).tolist()
    except (ValueError, KeyError) as error:
        raise RequestError(
            f"Input {tensor.name!r} must be numbers, or BYTES that are UTF-8, each after its "
            f"length; got {tensor.datatype!r}: {error}. Correct it.",
            status=422,
        ) from error
    if len(values) != math.prod(tensor.shape):
        raise RequestError(
            f"Input {tensor.name!r} must have the elements of its shape {list(tensor.shape)}; got "
            f"{len(values)}. Correct it.",
            status=422,
        )
    return values


def _split(raw: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(raw):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if end > len(raw):
            raise ValueError("an element ends after the tensor")
        yield raw[start + 4 : end]
        start = end
