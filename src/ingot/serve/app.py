"""The web application of a server: routes, headers, one observation per request."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ingot.core.extras import need
from ingot.registry.version import Version
from ingot.serve.access.rates import address_of
from ingot.serve.answers import (
    crash,
    describe_model,
    json_answer,
    problem,
    readiness,
    refusal,
)
from ingot.serve.infer import InferRoute
from ingot.serve.metrics import Series
from ingot.serve.problems import RequestError
from ingot.serve.routing import (
    MODEL,
    VERSION,
    Dispatch,
    FastPath,
    exact_paths,
    find_version,
    quick_paths,
    refuse_path,
)
from ingot.serve.routing import Route as Answering
from ingot.serve.state import Served
from ingot.serve.surroundings import Surroundings
from ingot.serve.traffic.dealing import Dealer
from ingot.serve.traffic.desk import TrafficDesk
from ingot.serve.traffic.metrics import TrafficMetrics
from ingot.serve.traffic.ticket import MAIN, PINNED
from ingot.serve.traffic_page import traffic_routes

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute


_EXTENSIONS = ["binary_tensor_data"]


def build_app(
    served: Sequence[Served],
    around: Surroundings | None = None,
    *,
    desks: Mapping[str, TrafficDesk] | None = None,
    more: "Sequence[BaseRoute]" = (),
) -> "Starlette":
    """Return the ASGI application that answers for some versions.

    It is not ready before `is_warm` of every state is set, which `ingot.serve.server` does after
    the first real inference, and refuses inferences with 503 once `is_draining` is set.

    Args:
        served: Versions with their states; sessions stay the caller's to close.
        around: What stands around them; nobody is asked and nothing is kept if not given.
        desks: Traffic by name of the model, where requests are dealt among its versions.
        more: Routes beside its own.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
    """
    need("starlette", extra="serve", what="Serving")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    around, desks = around or Surroundings(), desks or {}
    versions = [one.endpoint.version for one in served]
    infer = _inferences(served, versions, around, desks)
    named = _dealers(desks, versions, infer)
    dispatch = Dispatch(versions, infer, named)
    routes: list[BaseRoute] = [Route(path + "/infer", dispatch) for path in (MODEL, VERSION)]
    pages = _Pages(served, around, desks)
    routes += [*pages.routes(), *more]
    if desks:
        around.metrics.add(TrafficMetrics(desks))
        routes += traffic_routes(desks, pages.admit)
    if any(one.endpoint.generation for one in served):
        from ingot.serve.generation.app import text_routes

        routes += text_routes(served, around)
    failures = {HTTPException: _http_error, RequestError: refusal, Exception: crash}
    paths = exact_paths(versions, infer, named)
    fast = Middleware(FastPath, paths=paths)
    app = Starlette(routes=routes, middleware=[fast], exception_handlers=failures)
    app.state.quick = quick_paths(paths)
    return app


def _inferences(
    served: Sequence[Served],
    versions: Sequence[Version],
    around: Surroundings,
    desks: Mapping[str, TrafficDesk],
) -> list[Answering]:
    """Return what answers inferences of each version."""
    tracer = around.tracer
    found = [
        InferRoute(
            one, versions, log=around.log, gate=around.gate, limits=around.limits,
            metrics=_series(one, around),
            pinned=PINNED if one.endpoint.version.name in desks else MAIN,
        )
        for one in served
    ]  # fmt: skip
    return [*found] if tracer is None else [tracer.route(one) for one in found]


def _dealers(
    desks: Mapping[str, TrafficDesk], versions: Sequence[Version], routes: Sequence[Answering]
) -> dict[str, Dealer]:
    """Return what answers for each name that requests are dealt for."""
    pairs = list(zip(versions, routes, strict=True))
    return {
        name: desk.dealer(
            {version.number: route for version, route in pairs if version.name == name}
        )
        for name, desk in desks.items()
    }


def _series(one: Served, around: Surroundings) -> Series:
    version, state, log = one.endpoint.version, one.state, around.log
    series = around.metrics.series(version.name, str(version.number))
    series.watch(
        "ingot_requests_in_flight", "Requests being answered now.",
        lambda: state.in_flight, kind="gauge",
    )  # fmt: skip
    series.watch(
        "ingot_observations_dropped", "Observations that were not kept.",
        lambda: log.dropped if log is not None else 0, kind="counter",
    )  # fmt: skip
    series.watch(
        "ingot_observations_thinned", "Observations of refused requests that were left out.",
        lambda: log.thinned if log is not None else 0, kind="counter",
    )  # fmt: skip
    return series


class _Pages:
    """Everything but inference."""

    def __init__(
        self, served: Sequence[Served], around: Surroundings, desks: Mapping[str, TrafficDesk]
    ) -> None:
        self._served, self._metrics, self._desks = served, around.metrics, desks
        self._gate, self._limits = around.gate, around.limits
        self._versions = [one.endpoint.version for one in served]

    def routes(self) -> "list[BaseRoute]":
        """Return every page."""
        from starlette.routing import Route

        pages = [
            ("/v2", self.server),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            (MODEL, self.model),
            (VERSION, self.model),
            (MODEL + "/ready", self.model_ready),
            (VERSION + "/ready", self.model_ready),
            (MODEL + "/stats", self.stats),
            (VERSION + "/stats", self.stats),
            ("/metrics", self.prometheus),
            ("/openapi.json", self.openapi),
        ]
        return [Route(path, page, methods=["GET"]) for path, page in pages]

    async def server(self, _request: "Request") -> "Response":
        from importlib.metadata import version

        return json_answer(
            {"name": "ingot", "version": version("ingot"), "extensions": _EXTENSIONS}
        )

    async def live(self, _request: "Request") -> "Response":
        return json_answer({"live": True})

    async def ready(self, _request: "Request") -> "Response":
        waiting = [one for one in self._served if self._is_missed(one)]
        # everybody may ask this page, and a reason can name files: who needs a key gets none here
        reasons = [] if self._gate is not None else [one.state.trouble() for one in waiting]
        return readiness({}, is_ready=not waiting, reason=" ".join(filter(None, reasons)))

    async def model(self, request: "Request") -> "Response":
        one = await self._named(request)
        name = one.endpoint.version.name
        numbers = [version.number for version in self._versions if version.name == name]
        return json_answer(describe_model(one.endpoint, numbers))

    async def model_ready(self, request: "Request") -> "Response":
        one = await self._named(request)
        name, state = one.endpoint.version.name, one.state
        if "number" in request.path_params or name not in self._desks:
            return readiness({"name": name}, is_ready=state.is_ready, reason=state.trouble())
        missed = [
            f"{other.endpoint.version.label} does not answer. {other.state.trouble()}".rstrip()
            for other in self._served
            if other.endpoint.version.name == name and self._is_missed(other)
        ]
        return readiness({"name": name}, is_ready=not missed, reason=" ".join(missed))

    def _is_missed(self, one: Served) -> bool:
        """Say whether a version does not answer, though requests come to it.

        Where requests are dealt, those are the versions with a share of them now: a shadow, or a
        canary that was rolled back, keeps nobody waiting.
        """
        if one.state.is_ready:
            return False
        version = one.endpoint.version
        desk = self._desks.get(version.name)
        return desk is None or version.number in desk.table.split.numbers

    async def stats(self, request: "Request") -> "Response":
        from ingot.serve.figures import show_stats

        one = await self._named(request, also="metrics")
        path, query = request.path_params, request.query_params
        name, number = one.endpoint.version.name, path.get("number")
        # in a thread: a series of an hour takes longer than other requests may have to wait
        found = await asyncio.to_thread(show_stats, self._metrics.stats, name, number, query)
        return json_answer(found)

    async def prometheus(self, request: "Request") -> "Response":
        from starlette.responses import Response

        await self.admit(request, "metrics")
        text = self._metrics.text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: "Request") -> "Response":
        from importlib.metadata import version

        from ingot.serve.openapi import openapi

        shown = [one.endpoint for one in self._served]
        if self._gate is not None:
            caller = await self._gate.identify(request.headers.get("authorization", ""))
            shown = [one for one in shown if caller.may("read", one.version.name)]
        return json_answer(openapi(shown, version=version("ingot")))

    async def admit(self, request: "Request", action: str, model: str = "") -> str:
        """Return who asks, empty where nobody has to say; refuse whoever may not."""
        if self._gate is None:
            return ""
        proof = request.headers.get("authorization", "")
        return (await self._gate.admit(proof, action, model)).name

    async def _named(self, request: "Request", *, also: str = "") -> Served:
        """Return what a path names, to a caller who may read it or do something else."""
        name, proof = request.path_params["name"], request.headers.get("authorization", "")
        caller = None
        if self._gate is not None:
            caller = await self._gate.identify(proof)
            if not (also and caller.may(also)):
                caller = await self._gate.admit(proof, "read", name)
        if self._limits is not None:
            self._limits.take(caller, address_of(request.scope["client"]))
        index = find_version(self._versions, request.path_params)
        if index is None:
            raise RequestError(refuse_path(self._versions, request.path_params), status=404)
        return self._served[index]


async def _http_error(request: "Request", error: Exception) -> "Response":
    from starlette.exceptions import HTTPException

    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        message = f"{path} must be asked with {allowed}; got {method}. Change the method."
    else:
        message = (
            f"A path must be one of the Open Inference Protocol v2; got {path!r}. "
            "Start at /v2/models/{name} or POST to /v2/models/{name}/infer."
        )
    return problem(error.status_code, message, dict(error.headers or {}))
