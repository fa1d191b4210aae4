"""Requests that are refused: the error, and the document that tells the caller."""

import math
from http import HTTPStatus

import msgspec

from ingot.core.errors import ServeError

PROBLEM_TYPE = "application/problem+json"
_ENCODER = msgspec.json.Encoder()
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class RequestError(ServeError):
    """A request that is refused, with the HTTP status that says why.

    Attributes:
        status: The status.
        wait_s: Seconds after which it may be sent again; None where nothing is known.
    """

    def __init__(self, message: str, *, status: int = 400, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.wait_s = status, wait_s

    @property
    def retry_after(self) -> str | None:
        """Value of the header of that name: whole seconds, never fewer than it takes."""
        return None if self.wait_s is None else str(max(1, math.ceil(self.wait_s)))


class Problem(msgspec.Struct):
    """A problem document (RFC 9457); `error` is where the Open Inference Protocol has the words."""

    title: str
    status: int
    detail: str
    error: str
    type: str = "about:blank"


_DECODER = msgspec.json.Decoder(Problem)


def encode_problem(status: int, message: str) -> bytes:
    """Write a refusal.

    Examples:
        >>> encode_problem(404, "No model is named 'x' here.")[:35]
        b'{"title":"Not Found","status":404,"'
    """
    return _ENCODER.encode(Problem(_PHRASES.get(status, "Error"), status, message, message))


def problem_words(body: bytes) -> str:
    """Return the words of a problem document.

    Examples:
        >>> problem_words(encode_problem(404, "No model is named 'x' here."))
        "No model is named 'x' here."
    """
    return _DECODER.decode(body).detail


def late(limit_s: float) -> RequestError:
    """Return the error for a request that was not answered in its time."""
    return RequestError(
        f"A request must be answered within {limit_s:g} s; it was not. Ask for less at a time, or "
        "give it more time.",
        status=504,
    )


def stopping() -> RequestError:
    """Return the error for a request to an endpoint that was told to stop."""
    return RequestError(
        "The endpoint must be running to answer; it is stopping. Ask another replica, or again "
        "when it is back.",
        status=503,
    )


def refused(words: str) -> RequestError:
    """Return the error for inputs that fit the signature and that the engine still refuses."""
    return RequestError(
        f"The model must be able to run on the inputs; the engine refuses them: {words} "
        "Send values that the model knows.",
        status=422,
    )


def crowded(limit: int) -> RequestError:
    """Return the error for a request that finds too many others waiting."""
    return RequestError(
        f"At most {limit} requests may wait; so many do. Send the request again later.", status=429
    )
