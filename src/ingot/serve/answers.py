"""What the pages of every server say: JSON, problem documents, a model's description."""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingot.models.model import TensorSpec
from ingot.serve.datatypes import wire_name
from ingot.serve.endpoint import Endpoint
from ingot.serve.problems import PROBLEM_TYPE, RequestError, encode_problem

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)

_BODY_S = 30.0  # a caller that sends byte by byte does not hold a connection for ever
_CLOSE = {"connection": "close"}  # the rest of a body that is too large or slow is not read
_HEADERS = {401: {"www-authenticate": "Bearer"}, 408: _CLOSE, 413: _CLOSE}


def json_answer(
    value: object, status: int = 200, headers: dict[str, str] | None = None
) -> "Response":
    """Return a JSON answer."""
    import msgspec
    from starlette.responses import Response

    body = msgspec.json.encode(value)
    return Response(body, status, headers, media_type="application/json")


def readiness(facts: dict[str, object], *, is_ready: bool, reason: str = "") -> "Response":
    """Return the answer of a health page: 200, or 503 with the reason if there is one.

    Args:
        facts: What else it says.
        is_ready: Whether requests should be sent here.
        reason: Why not; left out where it is.
    """
    body = facts | {"ready": is_ready}
    if reason and not is_ready:
        body["reason"] = reason
    return json_answer(body, 200 if is_ready else 503)


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> "Response":
    """Return a problem document (RFC 9457).

    Args:
        status: HTTP status.
        detail: What must hold, what we got, what to do.
        headers: More headers than the status asks for.
    """
    from starlette.responses import Response

    headers = _HEADERS.get(status, {}) | (headers or {})
    return Response(encode_problem(status, detail), status, headers, media_type=PROBLEM_TYPE)


async def refusal(_request: "Request", error: Exception) -> "Response":
    """Answer a request that is refused."""
    assert isinstance(error, RequestError)
    again = error.retry_after
    return problem(error.status, str(error), {} if again is None else {"retry-after": again})


async def crash(request: "Request", error: Exception) -> "Response":
    """Answer a request on which the server failed."""
    log.error("%s failed", request.url.path, exc_info=error)
    return problem(500, "The server failed. Its log says why.")


async def read_body(request: "Request", what: str, *, most_bytes: int, advice: str) -> bytes:
    """Return the body of a request.

    Args:
        request: Whose body.
        what: What it is, for the message.
        most_bytes: A larger one is refused.
        advice: What to do then.

    Raises:
        RequestError: It is too large (413), does not arrive in time (408), or its caller hangs up.
    """
    from starlette.requests import ClientDisconnect

    def check(size: int) -> None:
        if size > most_bytes:
            words = f"{what} must be at most {most_bytes:,} bytes; got {size:,} or more. {advice}"
            raise RequestError(words, status=413)

    length = request.headers.get("content-length", "0")
    check(int(length) if length.isdigit() else 0)
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                body += part
                check(len(body))
    except TimeoutError as error:
        words = f"A body must arrive within {_BODY_S:g} s; this one did not. Send it at once."
        raise RequestError(words, status=408) from error
    except ClientDisconnect as error:  # nobody reads this answer, and nothing went wrong here
        raise RequestError("A body must arrive whole; its caller hung up. Send it anew.") from error
    return bytes(body)


def describe_model(endpoint: Endpoint, numbers: Sequence[int]) -> dict[str, object]:
    """Return the metadata of a model in the form of the Open Inference Protocol.

    Args:
        endpoint: What is served.
        numbers: Every version of its name that is served.
    """
    version, signature = endpoint.version, endpoint.model.signature
    return {
        "name": version.name,
        "versions": [str(number) for number in numbers],
        "platform": f"onnx_{version.config.engine}",
        "inputs": _specs(signature.inputs),
        "outputs": _specs(signature.outputs),
        "parameters": {"ingot-version": version.digest, "ingot-model": version.model},
    }


def _specs(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
    return [
        {
            "name": spec.name,
            "datatype": wire_name(spec.dtype),
            "shape": [size if isinstance(size, int) else -1 for size in spec.shape],
            "parameters": {"axes": list(spec.shape)},  # -1 alone loses which axes move together
        }
        for spec in specs
    ]
