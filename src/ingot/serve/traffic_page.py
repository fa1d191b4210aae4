"""The page on which people see the traffic of a name, and take it into their own hands."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from ingot.core.errors import ServeError
from ingot.core.names import suggest
from ingot.serve.answers import json_answer, read_body
from ingot.serve.problems import RequestError
from ingot.serve.traffic.desk import TrafficDesk

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

# Asked with a request, an action and a model; returns who asks, or refuses with `RequestError`.
Admit = Callable[["Request", str, str], Awaitable[str]]
_MOST_BYTES = 64 * 1024


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What a caller wants changed: exactly one of these."""

    weights: dict[int, float] | None = None
    roll_back: bool = False
    start: bool = False


def traffic_routes(desks: Mapping[str, TrafficDesk], admit: Admit) -> "list[BaseRoute]":
    """Return the route `/v2/models/{name}/traffic`.

    Args:
        desks: Traffic by name of the model.
        admit: Asked before every page, for `read` or `operate`.
    """
    from starlette.routing import Route

    async def page(request: "Request") -> "Response":
        name = request.path_params["name"]
        is_change = request.method == "POST"
        who = await admit(request, "operate" if is_change else "read", name)
        desk = desks.get(name)
        if desk is None:
            words = f"No traffic is dealt for {name!r} here. {suggest(name, desks)}"
            raise RequestError(words, status=404)
        if is_change:
            body = await read_body(
                request, "A change", most_bytes=_MOST_BYTES, advice="Send only what changes."
            )
            change = _read(request.headers.get("content-type", ""), body)
            await asyncio.to_thread(_apply, desk, change, who)
        # in a thread: it reads the record on disk
        return json_answer(await asyncio.to_thread(desk.describe))

    return [Route("/v2/models/{name}/traffic", page, methods=["GET", "POST"])]


def _read(content_type: str, body: bytes) -> Change:
    # a page of another site can send a form or a text from a browser here, and no JSON
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            f"A change must be application/json; got {content_type[:64]!r}. Set content-type.",
            status=415,
        )
    try:
        change = msgspec.json.decode(body, type=Change)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RequestError(
            f'A change must be JSON such as {{"weights": {{"3": 0.9, "2": 0.1}}}}; got: '
            f"{error}. Correct it."
        ) from error
    if (change.weights is not None) + change.roll_back + change.start != 1:
        raise RequestError(
            "A change must be one of weights, roll_back: true and start: true; got none or "
            "several. Send one."
        )
    return change


def _apply(desk: TrafficDesk, change: Change, who: str) -> None:
    try:
        if change.weights is not None:
            desk.set_weights(change.weights, who)
        elif change.roll_back:
            desk.roll_back(who)
        else:
            desk.restart(who)
    except ServeError as error:
        raise RequestError(str(error), status=422) from error
