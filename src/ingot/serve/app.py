"""The web application of an endpoint: routes, headers, one observation per request."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingot.core.extras import need
from ingot.models.model import TensorSpec
from ingot.runtime.engine import Session
from ingot.serve.datatypes import wire_name
from ingot.serve.endpoint import Endpoint
from ingot.serve.infer import FastPath, InferRoute, ObservationSink, State, refuse_path
from ingot.serve.metrics import Metrics
from ingot.serve.protocol import encode_error

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

log = logging.getLogger(__name__)


def build_app(
    endpoint: Endpoint,
    session: Session,
    log: ObservationSink | None = None,
    *,
    state: State | None = None,
) -> "Starlette":
    """Return the ASGI application that answers for one version.

    It is not ready before `state.ready` is set, which `ingot.serve.server` does after the first
    real inference, and refuses inferences with 503 once `state.is_draining` is set.

    Args:
        endpoint: What is served.
        session: Its open session; the caller closes it.
        log: Where observations go; None keeps none.
        state: Shared with whoever starts and stops the application; fresh if not given.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
    """
    need("starlette", extra="serve", what="Serving")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    pages = _Pages(endpoint, state := state or State(), log)
    infer = InferRoute(endpoint, session, state, log=log, metrics=pages.metrics)
    model = "/v2/models/{name}"
    version = model + "/versions/{number}"
    routes: list[BaseRoute] = [
        Route(model + "/infer", infer),
        Route(version + "/infer", infer),
        *(
            Route(path, page, methods=["GET"])
            for path, page in (
                ("/v2", pages.server),
                ("/v2/health/live", pages.live),
                ("/v2/health/ready", pages.ready),
                (model, pages.model),
                (version, pages.model),
                (model + "/ready", pages.model_ready),
                (version + "/ready", pages.model_ready),
                ("/metrics", pages.prometheus),
            )
        ),
    ]
    name, number = endpoint.version.name, str(endpoint.version.number)
    served = {"name": name, "number": number}
    paths = {
        (model + "/infer").format(**served): {"name": name},
        (version + "/infer").format(**served): served,
    }
    return Starlette(
        routes=routes,
        middleware=[Middleware(FastPath, infer=infer, paths=paths)],
        exception_handlers={HTTPException: _http_error, Exception: _crash},
    )


class _Pages:
    """Everything but inference."""

    def __init__(self, endpoint: Endpoint, state: State, log: ObservationSink | None) -> None:
        self._endpoint, self._state = endpoint, state
        self.metrics = Metrics(
            endpoint.version.name,
            str(endpoint.version.number),
            in_flight=lambda: state.in_flight,
            dropped=lambda: log.dropped if log is not None else 0,
        )

    async def server(self, _request: "Request") -> "Response":
        from importlib.metadata import version

        return _json({"name": "ingot", "version": version("ingot"), "extensions": []})

    async def live(self, _request: "Request") -> "Response":
        return _json({"live": True})

    async def ready(self, _request: "Request") -> "Response":
        return _json({"ready": self._state.is_ready}, 200 if self._state.is_ready else 503)

    async def model(self, request: "Request") -> "Response":
        if (unknown := self._unknown(request)) is not None:
            return unknown
        version, signature = self._endpoint.version, self._endpoint.model.signature
        return _json(
            {
                "name": version.name,
                "versions": [str(version.number)],
                "platform": f"onnx_{version.config.engine}",
                "inputs": _specs(signature.inputs),
                "outputs": _specs(signature.outputs),
                "parameters": {"ingot-version": version.digest, "ingot-model": version.model},
            }
        )

    async def model_ready(self, request: "Request") -> "Response":
        if (unknown := self._unknown(request)) is not None:
            return unknown
        ready = self._state.is_ready
        body = {"name": self._endpoint.version.name, "ready": ready}
        return _json(body, 200 if ready else 503)

    async def prometheus(self, _request: "Request") -> "Response":
        from starlette.responses import Response

        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _unknown(self, request: "Request") -> "Response | None":
        message = refuse_path(self._endpoint.version, request.path_params)
        return None if message is None else _error(message, 404)


def _specs(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
    return [
        {
            "name": spec.name,
            "datatype": wire_name(spec.dtype),
            "shape": [size if isinstance(size, int) else -1 for size in spec.shape],
            "parameters": {"axes": list(spec.shape)},  # -1 alone loses which axes move together
        }
        for spec in specs
    ]


def _json(value: object, status: int = 200) -> "Response":
    import msgspec
    from starlette.responses import Response

    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _error(message: str, status: int, headers: dict[str, str] | None = None) -> "Response":
    from starlette.responses import Response

    return Response(encode_error(message), status, headers, media_type="application/json")


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
    return _error(message, error.status_code, dict(error.headers or {}))


async def _crash(request: "Request", error: Exception) -> "Response":
    log.error("%s failed", request.url.path, exc_info=error)
    return _error("The server failed. Its log says why.", 500)
