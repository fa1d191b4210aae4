"""What the completions and the chat of the OpenAI API have in common.

https://github.com/openai/openai-openapi
"""

from typing import Any

import msgspec

from ingot.runtime.generation.request import Piece
from ingot.serve.generation.asking import Knobs
from ingot.serve.generation.generate import sse
from ingot.serve.generation.reply import Reply
from ingot.serve.problems import RequestError

INVALID = 400
DONE = b"data: [DONE]\n\n"
_MEDIA = "application/json"
_MOST_STOPS, _WARMEST = 4, 2.0
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class StreamOptions(msgspec.Struct):
    """How a stream is sent."""

    include_usage: bool = False
    include_obfuscation: bool = False


class OpenAiKnobs(Knobs, kw_only=True):
    """Settings that completions and chat share; `check_shared` refuses what is not done."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = msgspec.field(default_factory=dict)
    user: str = ""


def check_shared(knobs: OpenAiKnobs) -> None:
    """Refuse what is asked for and not done.

    Raises:
        RequestError: Several choices, a penalty or a bias is asked for, or a value is out of the
            range of the API.
    """
    neutral = {
        "n": (knobs.n, 1), "presence_penalty": (knobs.presence_penalty, 0.0),
        "frequency_penalty": (knobs.frequency_penalty, 0.0), "logit_bias": (knobs.logit_bias, {}),
    }  # fmt: skip
    for name, (value, only) in neutral.items():
        if value != only:
            raise unsupported(name, value, only)
    if knobs.temperature > _WARMEST:
        raise RequestError(
            f"temperature must be between 0 and {_WARMEST:g}; got {knobs.temperature}. Lower it.",
            status=INVALID,
        )
    if isinstance(knobs.stop, list) and len(knobs.stop) > _MOST_STOPS:
        raise RequestError(
            f"stop must have at most {_MOST_STOPS} strings; got {len(knobs.stop)}. Drop some.",
            status=INVALID,
        )
    if knobs.stream_options is not None and not knobs.stream:
        raise RequestError(
            "stream_options must come with stream=true; it is false. Drop one of them.",
            status=INVALID,
        )


class OpenAiDialect:
    """What completions and chat answer alike.

    Attributes:
        invalid: Status of a request that does not fit the model.
    """

    invalid = INVALID

    def failure(self, status: int, words: str) -> tuple[str, bytes]:
        """Return media type and body of a refusal."""
        return failure(status, words)

    def broken(self, status: int, words: str) -> bytes:
        """Return the event of a text that failed under way."""
        return sse(_error(status, words)) + DONE


def unsupported(name: str, value: object, only: object) -> RequestError:
    """Return the refusal of a setting that this server does not have."""
    return RequestError(
        f"{name} must be {only!r} here; got {value!r}. Leave it out, or ask for it in several "
        "requests.",
        status=INVALID,
    )


def seed_in_range(seed: int | None) -> int | None:
    """Return the seed as a number from 0 up: the API allows negative ones."""
    return None if seed is None else seed % (1 << 64)


def failure(status: int, words: str) -> tuple[str, bytes]:
    """Return media type and body of a refusal."""
    return _MEDIA, msgspec.json.encode(_error(status, words))


# Any below: JSON.
def _error(status: int, words: str) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": words, "type": kind, "param": None, "code": _CODES.get(status)}
    return {"error": error}


def frame(reply: Reply, *, prefix: str, kind: str) -> dict[str, Any]:
    """Return what every answer begins with.

    Args:
        reply: The answer.
        prefix: Of its id.
        kind: `object` of the answer.
    """
    return {
        "id": f"{prefix}-{reply.request_id}",
        "object": kind,
        "created": reply.created,
        "model": reply.ask.model,
        "system_fingerprint": f"ingot_{reply.source.digest.removeprefix('sha256:')[:12]}",
    }


def usage(reply: Reply) -> dict[str, int]:
    """Return the numbers of tokens."""
    read, written = reply.text.prompt_tokens, reply.tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def usage_event(reply: Reply, head: dict[str, Any]) -> bytes:
    """Return the event with the numbers of tokens, if it was asked for."""
    return sse(head | {"choices": [], "usage": usage(reply)}) if reply.ask.usage else b""


def finish_of(piece: Piece) -> str | None:
    """Return why a text is over, in the words of the API."""
    return piece.finish if piece.finish in {"stop", "length"} else None
