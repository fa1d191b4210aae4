"""Which model answers a request, by its path."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ingot.core.names import suggest
from ingot.registry.version import Version

# Any below is the ASGI specification's: scopes and messages are open mappings.
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

HUNG_UP = "ingot.hung_up"  # in a scope: called when its caller hangs up before the answer
MODEL = "/v2/models/{name}"
VERSION = MODEL + "/versions/{number}"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        status: HTTP status.
        headers: Names in lower case.
        body: All of it.
    """

    status: int
    headers: Headers
    body: bytes


class Route(Protocol):
    """An ASGI application that answers for one version."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""


def find_version(versions: Sequence[Version], path: Mapping[str, str]) -> int | None:
    """Return the position of the version that a path names, or None if it is not served here.

    A path without a number means the first version of that name.

    Args:
        versions: What is served.
        path: `name` and perhaps `number`, from the path.
    """
    for index, version in enumerate(versions):
        if path["name"] == version.name and path.get("number") in {None, str(version.number)}:
            return index
    return None


def refuse_path(versions: Sequence[Version], path: Mapping[str, str]) -> str:
    """Say what is wrong with a path whose model or version is not served here.

    Args:
        versions: What is served.
        path: `name` and perhaps `number`, from the path.
    """
    name, names = path["name"], {version.name for version in versions}
    if name not in names:
        return f"No model is named {name!r} here. {suggest(name, names)}"
    number, numbers = path["number"], [str(v.number) for v in versions if v.name == name]
    return f"No version of {name!r} has number {number!r} here. {suggest(number, numbers)}"


@runtime_checkable
class QuickRoute(Route, Protocol):
    """A route that may answer a whole request on the spot."""

    def answer_now(self, path: Mapping[str, str], headers: Headers, body: bytes) -> Reply | None:
        """Answer, or return None for what must wait or be refused: `__call__` is asked then.

        Args:
            path: `name` and perhaps `number`, from the path.
            headers: Of the request, names in lower case.
            body: The whole of it.
        """


Ways = Mapping[str, tuple[Route, Mapping[str, str]]]


def exact_paths(
    versions: Sequence[Version], routes: Sequence[Route], named: Mapping[str, Route]
) -> Ways:
    """Return what answers for each infer path in its usual spelling, with what the path names.

    Args:
        versions: What is served.
        routes: What answers for each.
        named: What answers for a name without a number; the first version of it elsewhere.
    """
    paths: dict[str, tuple[Route, Mapping[str, str]]] = {}
    for version, route in zip(versions, routes, strict=True):
        served = {"name": version.name, "number": str(version.number)}
        paths[VERSION.format(**served) + "/infer"] = (route, served)
        # a path without a number means the first version of that name
        first = (named.get(version.name, route), {"name": version.name})
        paths.setdefault(MODEL.format(**served) + "/infer", first)
    return paths


def quick_paths(paths: Ways) -> dict[bytes, tuple[QuickRoute, Mapping[str, str]]]:
    """Return those of some paths that may be answered on the spot."""
    return {
        path.encode(): (route, names)
        for path, (route, names) in paths.items()
        if isinstance(route, QuickRoute)
    }


class Dispatch:
    """Sends an inference to the route of the model in its path.

    Args:
        versions: What is served.
        routes: What answers for each; the first also answers for what is not served, with 404.
        named: What answers for a name without a number, where that is not the first version.
    """

    def __init__(
        self, versions: Sequence[Version], routes: Sequence[Route], named: Mapping[str, Route]
    ) -> None:
        self._versions, self._routes, self._named = versions, routes, named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        path = scope["path_params"]
        index = find_version(self._versions, path)
        route = self._routes[index or 0]
        if "number" not in path:
            route = self._named.get(path["name"], route)
        await route(scope, receive, send)


class FastPath:
    """Middleware that takes inferences past the router, which costs as much as reading a tensor.

    Args:
        app: The rest of the application.
        paths: What answers for each path. These go past; the router takes every other spelling.
    """

    # Any: an ASGI application of the framework
    def __init__(self, app: Any, *, paths: Ways) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        found = self._paths.get(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
        else:
            route, scope["path_params"] = found
            await route(scope, receive, send)
