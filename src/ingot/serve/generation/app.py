"""Every route that writes texts, for the application of a server."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingot.models.ends import ends_of
from ingot.registry.version import Version
from ingot.serve.generation.chat import Chat
from ingot.serve.generation.completions import Completions
from ingot.serve.generation.door import ModelDoor, Models
from ingot.serve.generation.figures import Figures
from ingot.serve.generation.generate import Generate
from ingot.serve.generation.route import Dialect, TextRoute
from ingot.serve.generation.writer import Writer
from ingot.serve.routing import MODEL, VERSION, Dispatch
from ingot.serve.routing import Route as Answering
from ingot.serve.state import Served
from ingot.serve.surroundings import Surroundings

if TYPE_CHECKING:
    from starlette.routing import BaseRoute


def text_routes(served: Sequence[Served], around: Surroundings) -> "list[BaseRoute]":
    """Return the routes of the models that write texts; none if there is no such model.

    Args:
        served: Everything that is served; the runner of a model that writes is a `Writer`.
        around: What stands around them.
    """
    from starlette.routing import Route

    gate, tracer = around.gate, around.tracer

    def watched(route: Answering, path: str) -> Answering:
        return route if tracer is None else tracer.route(route, path=path)

    writing = [(one, one.state.runner) for one in served if isinstance(one.state.runner, Writer)]
    if not writing:
        return []
    versions = [one.endpoint.version for one, _ in writing]
    models = [_Model(one, writer, around) for one, writer in writing]
    routes: list[BaseRoute] = []
    for name, is_stream in (("/generate", False), ("/generate_stream", True)):
        dispatch = Dispatch(
            versions, [m.route(versions, Generate(is_stream=is_stream)) for m in models], {}
        )
        routes += [Route(path + name, watched(dispatch, path + name)) for path in (MODEL, VERSION)]
    ones = [one for one, _ in writing]
    completions = [m.route(versions, Completions()) for m in models]
    chats = [m.route(versions, Chat(ends_of(m.served.endpoint.model))) for m in models]
    pages = Models(ones, gate, int(time.time()))
    return [
        *routes,
        *(
            Route(path, watched(ModelDoor(ones, found, gate), path))
            for path, found in (("/v1/completions", completions), ("/v1/chat/completions", chats))
        ),
        Route("/v1/models", pages.all, methods=["GET"]),
        Route("/v1/models/{name}", pages.one, methods=["GET"]),
    ]


class _Model:
    """What the routes of one model share."""

    def __init__(self, served: Served, writer: Writer, around: Surroundings) -> None:
        version = served.endpoint.version
        labels = (version.name, str(version.number))
        self.served, self._writer, self._around = served, writer, around
        self._series = around.metrics.series(*labels)
        self._figures = Figures(around.metrics, self._series, labels, writer)

    def route(self, versions: Sequence[Version], dialect: Dialect) -> TextRoute:
        """Return the route of a protocol."""
        return TextRoute(
            self.served,
            versions,
            writer=self._writer,
            dialect=dialect,
            figures=self._figures,
            metrics=self._series,
            log=self._around.log,
            gate=self._around.gate,
            limits=self._around.limits,
        )
