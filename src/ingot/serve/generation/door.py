"""The door of the OpenAI API: which model a body names, and the list of models."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ingot.core.names import suggest
from ingot.serve.access.gate import Gate
from ingot.serve.answers import json_answer
from ingot.serve.generation import openai
from ingot.serve.problems import RequestError
from ingot.serve.routing import Receive, Route, Scope, Send
from ingot.serve.state import Served

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


class _Named(msgspec.Struct):
    """The one field of a body that decides who answers."""

    model: str


class ModelDoor:
    """ASGI application that sends a request to the model in its body.

    Args:
        served: Models that write texts.
        routes: What answers for each; the first also answers for what is not served, with 404.
        gate: Who may ask: a body is only read for a caller who is known.
    """

    def __init__(
        self, served: Sequence[Served], routes: Sequence[Route], gate: Gate | None
    ) -> None:
        self._first, self._gate = routes[0], gate
        self._limit = max(one.endpoint.max_body_bytes for one in served)
        self._routes: dict[str, tuple[Route, Mapping[str, str]]] = {}
        for one, route in zip(served, routes, strict=True):
            version = one.endpoint.version
            path = {"name": version.name, "number": str(version.number)}
            self._routes.setdefault(version.name, (route, path))
            self._routes[version.label] = (route, path)

    # Any: scopes are open mappings, and one entry is added
    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer."""
        first, path = next(iter(self._routes.values()))
        if scope["method"] == "POST" and await self._is_known(scope):
            messages, name = await self._named(receive)
            receive = _again(messages, receive)
            if name is not None:
                first, path = self._routes.get(name, (first, {"name": name}))
        scope["path_params"] = path
        await first(scope, receive, send)

    async def _is_known(self, scope: Scope) -> bool:
        if self._gate is None:
            return True
        proof = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        try:
            await self._gate.identify(proof)
        except RequestError:
            return False
        return True

    async def _named(self, receive: Receive) -> tuple[list[Mapping[str, Any]], str | None]:
        """Return the messages of a body, and the model in it, if it can be read."""
        messages: list[Mapping[str, Any]] = []
        size, more = 0, True
        while more and size <= self._limit:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
        body = b"".join(message.get("body", b"") for message in messages)
        try:
            return messages, msgspec.json.decode(body, type=_Named).model
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return messages, None  # whoever answers says what is wrong with it


class Models:
    """Pages that list the models which write texts.

    Args:
        served: Those models.
        gate: Who may see them.
        started: UTC seconds since 1970 at which the server began.
    """

    def __init__(self, served: Sequence[Served], gate: Gate | None, started: int) -> None:
        self._served, self._gate, self._started = served, gate, started

    async def all(self, request: "Request") -> "Response":
        """List the models that the caller may see."""
        try:
            rows = await self._rows(request)
        except RequestError as error:
            return _refusal(error)
        return json_answer({"object": "list", "data": rows})

    async def one(self, request: "Request") -> "Response":
        """Describe one model."""
        try:
            rows = await self._rows(request)
            name = request.path_params["name"]
            found = next((row for row in rows if row["id"] == name), None)
            if found is None:
                ids = [str(row["id"]) for row in rows]
                words = f"No model is named {name!r} here. {suggest(name, ids)}"
                raise RequestError(words, status=404)
        except RequestError as error:
            return _refusal(error)
        return json_answer(found)

    async def _rows(self, request: "Request") -> list[dict[str, object]]:
        shown = [one.endpoint.version for one in self._served]
        if self._gate is not None:
            caller = await self._gate.identify(request.headers.get("authorization", ""))
            shown = [version for version in shown if caller.may("read", version.name)]
        names: dict[str, None] = {}
        for version in shown:
            names |= {version.name: None, version.label: None}
        facts = {"object": "model", "created": self._started, "owned_by": "ingot"}
        return [{"id": name} | facts for name in names]


def _again(messages: Sequence[Mapping[str, Any]], receive: Receive) -> Receive:
    """Return a receiver that gives messages that were received before, then goes on."""
    left = iter(messages)

    async def give() -> Mapping[str, Any]:
        message = next(left, None)
        return await receive() if message is None else message

    return give


def _refusal(error: RequestError) -> "Response":
    from starlette.responses import Response

    media, body = openai.failure(error.status, str(error))
    return Response(body, error.status, media_type=media)
