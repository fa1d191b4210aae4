"""OpenAI's chat: `POST /v1/chat/completions`, for models that carry a chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ingot.core.errors import ServeError
from ingot.core.extras import is_installed, need
from ingot.models.ends import Ends
from ingot.runtime.generation.request import Piece
from ingot.runtime.generation.text import Tokenizer
from ingot.serve.generation import openai
from ingot.serve.generation.asking import MOST_LOGPROBS, Ask, fit, read_object, sampling_of
from ingot.serve.generation.generate import sse
from ingot.serve.generation.openai import INVALID, OpenAiDialect, OpenAiKnobs, unsupported
from ingot.serve.generation.reply import Reply, Source
from ingot.serve.problems import RequestError

_MAX_TOKENS = 1024  # the API has none; a text must end where a small model never does


class ChatRequest(OpenAiKnobs, kw_only=True):
    """What may be asked for: the API's settings, and those of `Knobs` that it lacks."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int = _MAX_TOKENS
    logprobs: bool = False
    top_logprobs: int = 0
    tools: list[Any] = msgspec.field(default_factory=list)
    response_format: dict[str, Any] = msgspec.field(default_factory=dict)


class ChatTemplate:
    """Makes a prompt of messages, as the model was trained to read them.

    The template comes with the model. It runs in Jinja's sandbox: it sees the messages and the
    tokens, and nothing of this process.

    Args:
        ends: What the model carries.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        ServeError: The template cannot be read.
    """

    def __init__(self, ends: Ends) -> None:
        sandbox = need("jinja2.sandbox", extra="report", what="Chat")
        jinja = need("jinja2", extra="report", what="Chat")
        world = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        world.globals["raise_exception"] = _refuse
        self._named, self._error = dict(ends.named), jinja.TemplateError
        try:
            self._template = world.from_string(ends.chat_template)
        except jinja.TemplateError as error:
            raise ServeError(
                f"The chat template of a model must be Jinja; got {error}. Load the model without "
                "it, or correct it there."
            ) from error

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt.

        Raises:
            RequestError: The template refuses these messages (400).
        """
        try:
            return str(
                self._template.render(
                    messages=messages, add_generation_prompt=True, tools=None, **self._named
                )
            )
        except (self._error, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise RequestError(
                f"The model's chat template must take the messages; it says: {error}. Change "
                "their roles, order or content.",
                status=INVALID,
            ) from error


class Chat(OpenAiDialect):
    """Reads requests and writes answers of the chat API.

    Args:
        ends: What the model carries.
    """

    def __init__(self, ends: Ends) -> None:
        able = ends.chat_template and is_installed("jinja2")
        self._template = ChatTemplate(ends) if able else None
        self._lacks = "Jinja2 installed" if ends.chat_template else "a chat template"

    def read(self, body: bytes, source: Source, request_id: str) -> Ask:
        """Read a request.

        Args:
            body: As the API has it.
            source: Who answers.
            request_id: Of the request.

        Raises:
            RequestError: The model cannot chat (404), or the request does not fit (400).
        """
        if self._template is None:
            raise RequestError(
                f"A model that chats must have {self._lacks}; {source.model!r} has not. Ask it at "
                "/v1/completions.",
                status=404,
            )
        found = fit(read_object(body), ChatRequest, INVALID)
        _check(found)
        found.seed = openai.seed_in_range(found.seed)
        most = found.max_completion_tokens if found.max_tokens is None else found.max_tokens
        sampling = sampling_of(
            found, max_tokens=most, logprobs=found.top_logprobs if found.logprobs else None,
            ends=source.ends, request_id=request_id, status=INVALID,
        )  # fmt: skip
        options = found.stream_options
        text = self._template.prompt([_message(row) for row in found.messages])
        return Ask(
            source.tokenizer.encode(text, bare=True),  # the template has what goes around it
            sampling,
            found.stream,
            model=found.model,
            details=found.logprobs,
            usage=options is not None and options.include_usage,
        )

    def begin(self, reply: Reply) -> bytes:
        """Return what a stream begins with: who speaks."""
        return self._chunk(reply, {"role": "assistant", "content": ""}, None, None)

    def event(self, reply: Reply, piece: Piece) -> bytes:
        """Return the event of a piece; none without text, unless its token is asked for."""
        if not (piece.text or piece.finish or reply.ask.details):
            return b""
        logprobs = _logprobs(reply, [piece]) if reply.ask.details else None
        delta = {"content": piece.text} if piece.text else {}
        return self._chunk(reply, delta, logprobs, openai.finish_of(piece))

    def end(self, reply: Reply) -> bytes:
        """Return what a stream ends with."""
        return openai.usage_event(reply, _frame(reply, "chat.completion.chunk")) + openai.DONE

    def whole(self, reply: Reply) -> bytes:
        """Return the answer with the whole text."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": reply.written, "refusal": None},
            "logprobs": _logprobs(reply, reply.pieces) if reply.ask.details else None,
            "finish_reason": openai.finish_of(reply.pieces[-1]),
        }
        head = _frame(reply, "chat.completion")
        return msgspec.json.encode(head | {"choices": [choice], "usage": openai.usage(reply)})

    # Any below is what JSON can say.
    def _chunk(self, reply: Reply, delta: Any, logprobs: Any, finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        answer = _frame(reply, "chat.completion.chunk") | {"choices": [choice]}
        if reply.ask.usage:
            answer["usage"] = None
        return sse(answer)


def _check(found: ChatRequest) -> None:
    openai.check_shared(found)
    if found.tools:
        raise unsupported("tools", found.tools, [])
    if found.response_format.get("type", "text") != "text":
        raise unsupported("response_format", found.response_format, {"type": "text"})
    if not 0 <= found.top_logprobs <= MOST_LOGPROBS or (found.top_logprobs and not found.logprobs):
        raise RequestError(
            f"top_logprobs must be between 0 and {MOST_LOGPROBS}, with logprobs=true; got "
            f"{found.top_logprobs}. Correct them.",
            status=INVALID,
        )
    if not found.messages:
        raise RequestError("messages must hold one message or more; got none.", status=INVALID)


# Any below: a message of the API is an open mapping.
def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose content is text."""
    role, content = given.get("role"), given.get("content")
    if isinstance(content, list):
        parts = [row.get("text") if isinstance(row, dict) else None for row in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type] # all are
    if not isinstance(role, str) or not isinstance(content, str):
        raise RequestError(
            "A message must have a role and a content that is text; got something else. This model "
            "reads text only.",
            status=INVALID,
        )
    return {**given, "role": role, "content": content}


def _refuse(words: str) -> None:
    """Stop a template that does not like its messages."""
    raise ValueError(words)


# Any below: JSON.
def _frame(reply: Reply, kind: str) -> dict[str, Any]:
    return openai.frame(reply, prefix="chatcmpl", kind=kind)


def _logprobs(reply: Reply, rows: Sequence[Piece]) -> dict[str, Any]:
    tokenizer = reply.source.tokenizer
    content = [
        _token(tokenizer, piece.token, piece.logprob)
        | {"top_logprobs": [_token(tokenizer, token, value) for token, value in piece.top]}
        for piece in rows
    ]
    return {"content": content, "refusal": None}


def _token(tokenizer: Tokenizer, token: int | None, logprob: float | None) -> dict[str, Any]:
    text = "" if token is None else tokenizer.spell(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
