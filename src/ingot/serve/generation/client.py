"""A client that reads a text while a server writes it, on the standard library alone."""

import json
from collections.abc import Iterator, Mapping
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote, urlsplit

from ingot.core.errors import ServeError
from ingot.runtime.generation.request import Finish, Piece
from ingot.serve.client import connected, refusal_of

_REASONS: dict[str, Finish] = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


# Any below: parameters and events are JSON.
def generate(
    url: str,
    name: str,
    prompt: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 60,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Piece]:
    """Continue a text on a server; give its pieces as they come.

    Leaving the loop early hangs up, and the server stops writing.

    Args:
        url: Address of the server, e.g. `http://127.0.0.1:8000`.
        name: Name of the model there.
        prompt: Text to continue.
        parameters: Of the generate extension, e.g. `{"max_tokens": 50, "temperature": 0}`; with
            `details` every piece has its token, and with `logprobs` the likeliest others.
        timeout_s: Seconds to wait for each piece.
        headers: More request headers, e.g. `{"authorization": "Bearer ..."}`.

    Raises:
        ServeError: No answer, the server refused, or the text broke off; its words are quoted.
    """
    path = f"/v2/models/{quote(name, safe='')}/generate_stream"
    body = json.dumps({"text_input": prompt, "parameters": dict(parameters or {})}).encode()
    sent = {"content-type": "application/json", **(headers or {})}
    with connected(url, timeout_s) as connection:
        connection.request("POST", urlsplit(url).path.rstrip("/") + path, body, sent)
        response = connection.getresponse()
        if response.status != 200:
            raise refusal_of(url, response.status, response.read())
        yield from _pieces(url, response)


def _pieces(url: str, response: HTTPResponse) -> Iterator[Piece]:
    finish: Finish | None = None
    try:
        for line in response:
            if line.startswith(b"data:"):
                piece = _piece(url, json.loads(line[5:]))
                finish = piece.finish
                yield piece
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServeError(
            f"{url} must send events of the generate extension; got {error!r}. Is it a server of "
            "texts?"
        ) from error
    if finish is None:
        raise ServeError(f"{url} must end a text with its reason; it broke off. Ask again.")


def _piece(url: str, event: Any) -> Piece:
    if "error" in event:
        raise ServeError(f"{url} broke the text off: {event['error']}")
    token = event.get("details", {}).get("token", {})
    top = tuple((row["id"], row["logprob"]) for row in token.get("top_logprobs", ()))
    reason = event.get("finish_reason")
    return Piece(
        token.get("id"),
        event["text_output"],
        token.get("logprob"),
        top,
        None if reason is None else _REASONS[reason],
    )
