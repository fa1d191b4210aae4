"""The binary tensor extension of the Open Inference Protocol: raw bytes after the JSON.

A message is JSON of the length that the header `Inference-Header-Content-Length` says, then the
bytes of every tensor whose parameters hold `binary_data_size`, in the order of the JSON: row-major,
little-endian, one byte per boolean
(https://github.com/kserve/open-inference-protocol, "Binary Tensor Data Extension").
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.data.data import Array
from ingot.models.model import TensorSpec
from ingot.serve.datatypes import from_bytes
from ingot.serve.problems import RequestError

LENGTH_HEADER = b"inference-header-content-length"
SIZE, WANTED, ALL_WANTED = "binary_data_size", "binary_data", "binary_data_output"
_LENGTH = re.compile(r"\d{1,12}")


class Tail:
    """The bytes after the JSON, taken tensor by tensor."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._start = data, 0

    def take(self, spec: TensorSpec, shape: tuple[int, ...], size: Any) -> Array:  # from JSON
        """Return the next tensor, in memory of its own.

        Args:
            spec: The model's input.
            shape: As the request has it, checked against the specification.
            size: `binary_data_size` of the request.

        Raises:
            RequestError: The size is not that of the shape, the bytes end before, or a boolean is
                neither 0 nor 1.
        """
        dtype = np.dtype(spec.dtype)
        expected = math.prod(shape) * dtype.itemsize
        if isinstance(size, bool) or size != expected:
            raise RequestError(
                f"binary_data_size of input {spec.name!r} must be {expected}, that of its shape "
                f"{list(shape)}; got {size!r}. Correct shape or size."
            )
        data = self._data[self._start : self._start + expected]
        if len(data) < expected:
            raise RequestError(
                f"Input {spec.name!r} must have {expected} bytes after the JSON; got {len(data)}. "
                "Send the whole tensor."
            )
        self._start += expected
        if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
            raise RequestError(
                f"Booleans of input {spec.name!r} must be bytes 0 or 1; got others. Convert them."
            )
        return from_bytes(data, spec.dtype, shape)

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            RequestError: Bytes are left that no tensor claims.
        """
        left = len(self._data) - self._start
        if left:
            raise RequestError(
                f"Every byte after the JSON must belong to a tensor; {left} belong to none. "
                "Say binary_data_size in the parameters of each binary input."
            )


def split_body(body: bytes, length: str | None) -> tuple[bytes, Tail | None]:
    """Return the JSON of a message and the tensors after it.

    Args:
        body: The whole message.
        length: Value of the header; None means that all of it is JSON.

    Raises:
        RequestError: The length is not a number, or larger than the message.
    """
    if length is None:
        return body, None
    if not _LENGTH.fullmatch(length) or int(length) > len(body):
        raise RequestError(
            f"Header Inference-Header-Content-Length must be at most the {len(body)} bytes of the "
            f"body; got {length[:32]!r}. Send the length of the JSON before the tensors."
        )
    size = int(length)
    return body[:size], Tail(memoryview(body)[size:])


def wants_bytes(output: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Say whether an output is asked for as bytes.

    Args:
        output: Its parameters in the request.
        request: Parameters of the whole request, which speak where the output's do not.
    """
    return bool(output.get(WANTED, request.get(ALL_WANTED, False)))
