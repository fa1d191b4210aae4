"""The web application of a server: routes, headers, one observation per request."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from ingot.core.extras import need
from ingot.serve.access.gate import Gate
from ingot.serve.answers import crash, describe_model, json_answer, problem, refusal
from ingot.serve.infer import InferRoute
from ingot.serve.metrics import Metrics, Series
from ingot.serve.problems import RequestError
from ingot.serve.routing import MODEL, VERSION, Dispatch, FastPath, find_version, refuse_path
from ingot.serve.state import ObservationSink, Served

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

_EXTENSIONS = ["binary_tensor_data"]


def build_app(
    served: Sequence[Served],
    log: ObservationSink | None = None,
    *,
    metrics: Metrics | None = None,
    gate: Gate | None = None,
    more: "Sequence[BaseRoute]" = (),
) -> "Starlette":
    """Return the ASGI application that answers for some versions.

    It is not ready before `is_warm` of every state is set, which `ingot.serve.server` does after
    the first real inference, and refuses inferences with 503 once `is_draining` is set.

    Args:
        served: Versions with their states; sessions stay the caller's to close.
        log: Where observations go; None keeps none.
        metrics: What is counted; fresh if not given.
        gate: Who may ask; None lets everybody.
        more: Routes beside its own.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
    """
    need("starlette", extra="serve", what="Serving")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    metrics = metrics or Metrics()
    versions = [one.endpoint.version for one in served]
    infer = [
        InferRoute(one, versions, log=log, gate=gate, metrics=_series(one, metrics, log))
        for one in served
    ]
    dispatch = Dispatch(versions, infer)
    routes: list[BaseRoute] = [Route(path + "/infer", dispatch) for path in (MODEL, VERSION)]
    pages = _Pages(served, metrics, gate).routes()
    routes += [Route(path, page, methods=["GET"]) for path, page in pages]
    routes += more
    return Starlette(
        routes=routes,
        middleware=[Middleware(FastPath, versions=versions, routes=infer)],
        exception_handlers={
            HTTPException: _http_error,
            RequestError: refusal,
            Exception: crash,
        },
    )


def _series(one: Served, metrics: Metrics, log: ObservationSink | None) -> Series:
    version, state = one.endpoint.version, one.state
    series = metrics.series(version.name, str(version.number))
    series.watch(
        "ingot_requests_in_flight", "Requests being answered now.",
        lambda: state.in_flight, kind="gauge",
    )  # fmt: skip
    series.watch(
        "ingot_observations_dropped", "Observations that were not kept.",
        lambda: log.dropped if log is not None else 0, kind="counter",
    )  # fmt: skip
    return series


class _Pages:
    """Everything but inference."""

    def __init__(self, served: Sequence[Served], metrics: Metrics, gate: Gate | None) -> None:
        self._served, self._metrics, self._gate = served, metrics, gate
        self._versions = [one.endpoint.version for one in served]

    def routes(self) -> "list[tuple[str, Callable[[Request], Awaitable[Response]]]]":
        """Return every page by its path."""
        return [
            ("/v2", self.server),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            (MODEL, self.model),
            (VERSION, self.model),
            (MODEL + "/ready", self.model_ready),
            (VERSION + "/ready", self.model_ready),
            ("/metrics", self.prometheus),
            ("/openapi.json", self.openapi),
        ]

    async def server(self, _request: "Request") -> "Response":
        from importlib.metadata import version

        return json_answer(
            {"name": "ingot", "version": version("ingot"), "extensions": _EXTENSIONS}
        )

    async def live(self, _request: "Request") -> "Response":
        return json_answer({"live": True})

    async def ready(self, _request: "Request") -> "Response":
        is_ready = all(one.state.is_ready for one in self._served)
        return json_answer({"ready": is_ready}, 200 if is_ready else 503)

    async def model(self, request: "Request") -> "Response":
        one = await self._named(request)
        name = one.endpoint.version.name
        numbers = [version.number for version in self._versions if version.name == name]
        return json_answer(describe_model(one.endpoint, numbers))

    async def model_ready(self, request: "Request") -> "Response":
        one = await self._named(request)
        body = {"name": one.endpoint.version.name, "ready": one.state.is_ready}
        return json_answer(body, 200 if one.state.is_ready else 503)

    async def prometheus(self, request: "Request") -> "Response":
        from starlette.responses import Response

        await self._admit(request, "metrics")
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

    async def _admit(self, request: "Request", action: str, model: str = "") -> None:
        if self._gate is not None:
            await self._gate.admit(request.headers.get("authorization", ""), action, model)

    async def _named(self, request: "Request") -> Served:
        await self._admit(request, "read", request.path_params["name"])
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
