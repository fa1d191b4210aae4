"""OpenAI's completions: `POST /v1/completions`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from ingot.runtime.generation.request import Piece, Prompt
from ingot.runtime.generation.text import Tokenizer
from ingot.serve.generation import openai
from ingot.serve.generation.asking import Ask, fit, read_object, sampling_of
from ingot.serve.generation.generate import sse
from ingot.serve.generation.openai import INVALID, OpenAiDialect, OpenAiKnobs, unsupported
from ingot.serve.generation.reply import Reply, Source
from ingot.serve.problems import RequestError

_MAX_TOKENS, _MOST_LOGPROBS = 16, 5  # the API's


class CompletionRequest(OpenAiKnobs, kw_only=True):
    """What may be asked for: the API's settings, and those of `Knobs` that it lacks."""

    prompt: str | list[Any]  # text, token ids, or one of either in a list
    max_tokens: int = _MAX_TOKENS
    logprobs: int | None = None
    echo: bool = False
    best_of: int = 1
    suffix: str = ""


class Completions(OpenAiDialect):
    """Reads requests and writes answers of the completions API."""

    def read(self, body: bytes, source: Source, request_id: str) -> Ask:
        """Read a request.

        Args:
            body: As the API has it.
            source: Who answers.
            request_id: Of the request.

        Raises:
            RequestError: It is not one, or asks for what is not done here (400).
        """
        found = fit(read_object(body), CompletionRequest, INVALID)
        openai.check_shared(found)
        if found.best_of != 1:
            raise unsupported("best_of", found.best_of, 1)
        if found.suffix:
            raise unsupported("suffix", found.suffix, "")
        _check_logprobs(found)
        found.seed = openai.seed_in_range(found.seed)
        sampling = sampling_of(
            found, max_tokens=found.max_tokens, logprobs=found.logprobs, ends=source.ends,
            request_id=request_id, status=INVALID,
        )  # fmt: skip
        options = found.stream_options
        return Ask(
            _prompt(found.prompt),
            sampling,
            found.stream,
            model=found.model,
            details=found.logprobs is not None,
            echo=found.echo,
            usage=options is not None and options.include_usage,
        )

    def begin(self, reply: Reply) -> bytes:
        """Return what a stream begins with: the prompt, where it is to be echoed."""
        return self._chunk(reply, _echo(reply), None, None) if reply.ask.echo else b""

    def event(self, reply: Reply, piece: Piece) -> bytes:
        """Return the event of a piece; none without text, unless its token is asked for."""
        if not (piece.text or piece.finish or reply.ask.details):
            return b""
        logprobs = None
        if reply.ask.details:
            logprobs = _logprobs(reply, [piece])
        return self._chunk(reply, piece.text, logprobs, openai.finish_of(piece))

    def end(self, reply: Reply) -> bytes:
        """Return what a stream ends with."""
        return openai.usage_event(reply, _frame(reply)) + openai.DONE

    def whole(self, reply: Reply) -> bytes:
        """Return the answer with the whole text."""
        text = (_echo(reply) if reply.ask.echo else "") + reply.written
        logprobs = _logprobs(reply, reply.pieces) if reply.ask.details else None
        choice = _choice(text, logprobs, openai.finish_of(reply.pieces[-1]))
        return msgspec.json.encode(
            _frame(reply) | {"choices": [choice], "usage": openai.usage(reply)}
        )

    # Any below is what JSON can say.
    def _chunk(self, reply: Reply, text: str, logprobs: Any, finish: str | None) -> bytes:
        answer = _frame(reply) | {"choices": [_choice(text, logprobs, finish)]}
        if reply.ask.usage:
            answer["usage"] = None
        return sse(answer)


def _check_logprobs(found: CompletionRequest) -> None:
    if found.logprobs is None:
        return
    if not 0 <= found.logprobs <= _MOST_LOGPROBS:
        raise RequestError(
            f"logprobs must be between 0 and {_MOST_LOGPROBS}; got {found.logprobs}. Change it.",
            status=INVALID,
        )
    if found.echo:
        raise RequestError(
            "echo must be false with logprobs: those of the prompt are not computed. Drop one.",
            status=INVALID,
        )


def _prompt(given: str | list[Any]) -> Prompt:
    """Return the one prompt of a request."""
    alone = isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list)
    one = given[0] if alone else given
    if isinstance(one, str) or all(type(row) is int for row in one):  # a boolean is no id
        return one
    raise RequestError(
        "prompt must be one text or one list of token ids; got several, or something else. Send a "
        "request for each: they are written at the same time.",
        status=INVALID,
    )


def _echo(reply: Reply) -> str:
    prompt = reply.ask.prompt
    return prompt if isinstance(prompt, str) else reply.source.tokenizer.decode(prompt)


# Any below: JSON.
def _frame(reply: Reply) -> dict[str, Any]:
    return openai.frame(reply, prefix="cmpl", kind="text_completion")


def _choice(text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(reply: Reply, rows: Sequence[Piece]) -> dict[str, Any]:
    """Return tokens and log-probabilities of the next pieces, with their places in the text."""
    tokenizer, offsets = reply.source.tokenizer, []
    for piece in rows:
        offsets.append(reply.offset)
        reply.offset += len(piece.text)
    return {
        "tokens": [_spelled(tokenizer, piece.token) for piece in rows],
        "token_logprobs": [piece.logprob for piece in rows],
        "top_logprobs": [
            {tokenizer.spell(token): value for token, value in piece.top} for piece in rows
        ],
        "text_offset": offsets,
    }


def _spelled(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.spell(token)
