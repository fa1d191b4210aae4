"""The generate extension of the Open Inference Protocol: one text in, one text out, or a stream.

https://github.com/kserve/open-inference-protocol, `specification/protocol/generate_rest.yaml`, and
Triton's `docs/protocol/extension_generate.md`, which lets parameters stand beside `text_input`.
"""

from typing import Any

import msgspec

from ingot.runtime.generation.request import Piece
from ingot.serve.generation.asking import Ask, Knobs, fit, read_object, sampling_of
from ingot.serve.generation.reply import Reply, Source
from ingot.serve.problems import PROBLEM_TYPE, RequestError, encode_problem

_MAX_TOKENS = 20  # its default
_SHOWN = 40  # bytes of a value that a refusal quotes


class Parameters(Knobs):
    """What may be asked for; the first are the specification's, the rest this server's."""

    max_tokens: int = _MAX_TOKENS
    details: bool = False
    logprobs: int | None = None
    stream: bool | None = None


class Generate:
    """Reads requests and writes answers of the extension.

    Args:
        is_stream: Whether for `/generate_stream`.
    """

    invalid = 422  # what the specification answers to inputs that do not fit

    def __init__(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream

    def read(self, body: bytes, source: Source, request_id: str) -> Ask:
        """Read a request.

        Args:
            body: `{"text_input": ..., "parameters": {...}}`.
            source: Who answers.
            request_id: Of the request.

        Raises:
            RequestError: Not JSON (400), or not a request (422).
        """
        given = read_object(body)
        prompt, more = given.pop("text_input", None), given.pop("parameters", None)
        more = {} if more is None else more
        given.pop("id", None)  # Triton's clients send one; the answer has a header for it
        for name, value, what, kind in (
            ("text_input", prompt, "text", str), ("parameters", more, "an object", dict),
        ):  # fmt: skip
            if not isinstance(value, kind):
                raise RequestError(
                    f"{name} must be {what}; got {_shown(value)}. Send "
                    '{"text_input": "TEXT", "parameters": {}}.',
                    status=self.invalid,
                )
        found = fit(given | more, Parameters, self.invalid)
        if found.stream is not None and found.stream is not self._is_stream:
            raise RequestError(
                f"stream must be {str(self._is_stream).lower()} on this path, or left out. POST to "
                "/generate_stream for pieces, and to /generate for the whole text.",
                status=self.invalid,
            )
        details = found.details or found.logprobs is not None
        sampling = sampling_of(
            found,
            max_tokens=found.max_tokens,
            logprobs=found.logprobs or 0 if details else None,
            ends=source.ends,
            request_id=request_id,
            status=self.invalid,
        )
        return Ask(prompt, sampling, self._is_stream, details=details)

    def begin(self, reply: Reply) -> bytes:
        """Return what a stream begins with: nothing."""
        del reply
        return b""

    def event(self, reply: Reply, piece: Piece) -> bytes:
        """Return the event of a piece; none without text, unless its token is asked for."""
        if not (piece.text or piece.finish or reply.ask.details):
            return b""
        answer = _answer(reply, piece.text)
        if reply.ask.details:
            answer["details"] = {
                "finish_reason": _reason(reply, piece), "token": _token(reply, piece),
            }  # fmt: skip
        if piece.finish:
            answer |= _end(reply, piece)
        return sse(answer)

    def end(self, reply: Reply) -> bytes:
        """Return what a stream ends with: nothing."""
        del reply
        return b""

    def whole(self, reply: Reply) -> bytes:
        """Return the answer with the whole text."""
        answer = _answer(reply, reply.written)
        if reply.ask.details:
            answer["details"] = {
                "finish_reason": _reason(reply, reply.pieces[-1]),
                "logprobs": [_token(reply, piece) for piece in reply.pieces],
            }
        return msgspec.json.encode(answer | _end(reply, reply.pieces[-1]))

    def failure(self, status: int, words: str) -> tuple[str, bytes]:
        """Return media type and body of a refusal."""
        return PROBLEM_TYPE, encode_problem(status, words)

    def broken(self, status: int, words: str) -> bytes:
        """Return the event of a text that failed under way."""
        del status
        return sse({"error": words})


def sse(value: object) -> bytes:
    """Return a server-sent event with a value as its JSON."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


# Any below: JSON.
def _shown(value: Any) -> str:
    return msgspec.json.encode(value)[:_SHOWN].decode(errors="replace")


def _answer(reply: Reply, text: str) -> dict[str, Any]:
    source = reply.source
    return {"model_name": source.model, "model_version": source.version, "text_output": text}


def _end(reply: Reply, piece: Piece) -> dict[str, Any]:
    """Return what the last answer says beside the specification's fields."""
    usage = {"prompt_tokens": reply.text.prompt_tokens, "generated_tokens": reply.tokens}
    return {"finish_reason": _reason(reply, piece), "usage": usage}


def _reason(reply: Reply, piece: Piece) -> str | None:
    if piece.finish == "stop":
        return "eos_token" if reply.is_end(piece) else "stop_sequence"
    return piece.finish


def _token(reply: Reply, piece: Piece) -> dict[str, Any]:
    assert piece.token is not None
    tokenizer = reply.source.tokenizer
    found = {
        "id": piece.token, "text": tokenizer.spell(piece.token), "logprob": piece.logprob,
        "special": piece.token in tokenizer.special,
    }  # fmt: skip
    if piece.top:
        found["top_logprobs"] = [
            {"id": token, "text": tokenizer.spell(token), "logprob": value}
            for token, value in piece.top
        ]
    return found
