"""A small client of the Open Inference Protocol v2, on the standard library alone."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from ingot.core.errors import ServeError
from ingot.data.data import Array
from ingot.models.model import Signature, TensorSpec
from ingot.serve.datatypes import NUMPY_OF, from_bytes, to_bytes, wire_name

_LENGTH = "inference-header-content-length"


def predict(
    url: str,
    name: str,
    inputs: Mapping[str, Array],
    *,
    timeout_s: float = 30,
    headers: Mapping[str, str] | None = None,
    binary: bool = False,
) -> tuple[dict[str, Array], dict[str, str]]:
    """Ask an endpoint for one inference.

    Args:
        url: Address of the server, e.g. `http://127.0.0.1:8000`.
        name: Name of the model there.
        inputs: Arrays by input name, dtypes as in the model's signature.
        timeout_s: Seconds to wait for each step of the exchange.
        headers: More request headers, e.g. `{"ingot-unit": "robot-7"}`.
        binary: Send and ask for tensors as bytes, which large ones are faster as, and which carry
            NaN and infinities. The server must know the protocol's binary extension.

    Returns:
        Arrays by output name, and the response headers with lower-case names; `ingot-version` and
        `ingot-model` say which version and model answered.

    Raises:
        ServeError: No answer, or the server refused; its own message is quoted.
    """
    arrays = {n: np.asarray(a) for n, a in inputs.items()}
    path = f"/v2/models/{quote(name, safe='')}/infer"
    sent = {"content-type": "application/json"}
    if binary:
        body, json_bytes = _write_bytes(arrays)
        sent = {"content-type": "application/octet-stream", _LENGTH: str(json_bytes)}
    else:
        body = json.dumps({"inputs": [_write(n, a) for n, a in arrays.items()]}).encode()
    sent |= dict(headers or {})
    answer, tail, received = ask(url, "POST", path, body=body, headers=sent, timeout_s=timeout_s)
    return read_tensors(answer["outputs"], tail), received


def fetch_signature(
    url: str, name: str, *, timeout_s: float = 30, headers: Mapping[str, str] | None = None
) -> Signature:
    """Ask an endpoint what a model takes and gives.

    Args:
        url: Address of the server.
        name: Name of the model there.
        timeout_s: Seconds to wait for each step of the exchange.
        headers: Request headers, e.g. `{"authorization": "Bearer ..."}`.

    Raises:
        ServeError: No answer, or the server refused; its own message is quoted.
    """
    path = f"/v2/models/{quote(name, safe='')}"
    answer, _, _ = ask(url, "GET", path, body=None, headers=headers or {}, timeout_s=timeout_s)
    return Signature(
        tuple(_spec(row) for row in answer["inputs"]),
        tuple(_spec(row) for row in answer["outputs"]),
    )


@contextmanager
def connected(url: str, timeout_s: float) -> Iterator[http.client.HTTPConnection]:
    """Give a connection to an endpoint, closed at the end.

    Args:
        url: Address of the server.
        timeout_s: Seconds to wait for each step of the exchange.

    Raises:
        ServeError: The address is none, or no answer comes.
    """
    parts = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise ServeError(
            f"An endpoint's address must be http://HOST:PORT or https://...; got {url!r}. "
            "Copy it from what `ingot serve` printed."
        )
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout_s)
    try:
        yield connection
    except (OSError, http.client.HTTPException) as error:
        raise ServeError(
            f"An endpoint must answer at {url}; got {error!r}. "
            "Start it with: ingot serve NAME@STAGE"
        ) from error
    finally:
        connection.close()


def refusal_of(url: str, status: int, payload: bytes) -> ServeError:
    """Return the error for an answer that is no 200, in the words of the server."""
    return ServeError(f"{url} answered {status}: {_message(payload)}")


# Any below is parsed JSON; what it must hold is the protocol's promise.
def ask(
    url: str,
    method: str,
    path: str,
    *,
    body: bytes | None,
    headers: Mapping[str, str],
    timeout_s: float,
) -> tuple[Any, bytes, dict[str, str]]:
    """Send one request and return its answer: JSON, bytes after it, headers in lower case.

    Args:
        url: Address of the server.
        method: Of HTTP.
        path: After the address.
        body: What is sent; None sends nothing.
        headers: Of the request.
        timeout_s: Seconds to wait for each step of the exchange.

    Raises:
        ServeError: No answer, or the server refused; its own message is quoted.
    """
    with connected(url, timeout_s) as connection:
        # a server that refuses a large body hangs up while we send; its answer is there to be read
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, urlsplit(url).path.rstrip("/") + path, body, dict(headers))
        response = connection.getresponse()
        payload = response.read()
    if response.status != 200:
        raise refusal_of(url, response.status, payload)
    received = {k.lower(): v for k, v in response.getheaders()}
    try:
        json_bytes = int(received.get(_LENGTH, len(payload)))
        return json.loads(payload[:json_bytes]), payload[json_bytes:], received
    except ValueError as error:
        raise ServeError(
            f"{url} must answer in JSON; got {payload[:80]!r}. Is it an inference server?"
        ) from error


def _message(payload: bytes) -> str:
    try:
        return str(json.loads(payload)["error"])
    except (ValueError, KeyError, TypeError):
        return payload[:200].decode(errors="replace")


def _write_bytes(arrays: Mapping[str, Array]) -> tuple[bytes, int]:
    tails = {name: to_bytes(array) for name, array in arrays.items()}
    inputs = [
        {
            "name": name,
            "datatype": _datatype(name, array),
            "shape": list(array.shape),
            "parameters": {"binary_data_size": len(tails[name])},
        }
        for name, array in arrays.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return b"".join((head, *tails.values())), len(head)


def _datatype(name: str, array: Array) -> str:
    datatype = wire_name(array.dtype.name)
    if datatype not in NUMPY_OF:
        raise ServeError(
            f"Input {name!r} must be one of {', '.join(NUMPY_OF)}; got {array.dtype}. Convert it."
        )
    return datatype


def _write(name: str, array: Array) -> dict[str, object]:
    datatype = _datatype(name, array)
    values = array.ravel()
    if array.dtype.kind == "f" and not np.isfinite(values).all():
        # JSON has no NaN: null stands for it; an infinity has no form at all
        if np.isinf(values).any():
            raise ServeError(f"Input {name!r} must not hold infinities; JSON has none. Clip it.")
        data: list[object] = [None if value != value else value for value in values.tolist()]
    else:
        data = values.tolist()
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": data}


def read_tensors(tensors: Any, tail: bytes) -> dict[str, Array]:
    """Return the arrays of an answer by output name.

    Args:
        tensors: Its `outputs`.
        tail: The bytes after its JSON, where those outputs are that have a `binary_data_size`.
    """
    arrays: dict[str, Array] = {}
    start = 0
    for tensor in tensors:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            arrays[tensor["name"]] = _read(tensor)
            continue
        dtype, shape = NUMPY_OF[tensor["datatype"]], tuple(tensor["shape"])
        arrays[tensor["name"]] = from_bytes(tail[start : start + size], dtype, shape)
        start += size
    return arrays


def _read(tensor: Any) -> Array:
    # numpy reads the null that stands for NaN
    return np.array(tensor["data"], NUMPY_OF[tensor["datatype"]]).reshape(tensor["shape"])


def _spec(row: Any) -> TensorSpec:
    shape = [f"axis{i}" if size == -1 else size for i, size in enumerate(row["shape"])]
    axes = (row.get("parameters") or {}).get("axes") or shape
    return TensorSpec(row["name"], NUMPY_OF.get(row["datatype"], row["datatype"]), tuple(axes))
