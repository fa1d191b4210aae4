"""The web application of an endpoint that takes jobs only: health, metadata, and the job routes."""

import logging
from typing import TYPE_CHECKING

from ingot.core.digest import Json
from ingot.serve.access.gate import Gate
from ingot.serve.app import _specs
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.metrics import JobMetrics
from ingot.serve.jobs.openapi import describe_jobs
from ingot.serve.jobs.web import job_routes, problem
from ingot.serve.problems import RequestError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)


def build_jobs_app(desk: JobDesk, metrics: JobMetrics, *, gate: Gate | None = None) -> "Starlette":
    """Return the ASGI application of an endpoint that takes jobs only.

    Args:
        desk: What its routes ask.
        metrics: What `/metrics` shows.
        gate: Who may ask; None lets everybody.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    pages = _Pages(desk, metrics, gate)
    return Starlette(
        routes=[
            Route("/v2/health/live", pages.live),
            Route("/v2/health/ready", pages.ready),
            Route("/v2/models/{name}", pages.model),
            Route("/metrics", pages.prometheus),
            Route("/openapi.json", pages.openapi),
            *job_routes(desk, admit=None if gate is None else pages.admit),
        ],
        exception_handlers={
            HTTPException: pages.refused,
            RequestError: pages.denied,
            Exception: pages.crashed,
        },
    )


class _Pages:
    def __init__(self, desk: JobDesk, metrics: JobMetrics, gate: Gate | None) -> None:
        self._desk, self._metrics, self._gate = desk, metrics, gate

    async def admit(self, request: "Request", action: str = "") -> None:
        """Let the caller pass, or raise: who puts or cancels must be allowed to infer."""
        if self._gate is None:
            return
        wanted = action or ("read" if request.method in {"GET", "HEAD"} else "infer")
        # a result is what an inference answers, so whoever may only read metadata does not get it
        if request.url.path.endswith("/result"):
            wanted = "infer"
        model = "" if wanted == "metrics" else self._desk.name
        await self._gate.admit(request.headers.get("authorization", ""), wanted, model)

    async def live(self, _request: "Request") -> "Response":
        return _json({"live": True})

    async def ready(self, _request: "Request") -> "Response":
        ready = self._desk.is_ready() and not self._desk.is_draining
        return _json({"ready": ready}, 200 if ready else 503)

    async def model(self, request: "Request") -> "Response":
        await self.admit(request)
        if request.path_params["name"] != self._desk.name:
            return problem(404, f"No model is named so here; {self._desk.name!r} is. Ask for it.")
        version, signature = self._desk.endpoint.version, self._desk.endpoint.model.signature
        return _json(
            {
                "name": version.name,
                "versions": [str(version.number)],
                "platform": f"onnx_{version.config.engine}",
                "inputs": _specs(signature.inputs),  # type: ignore[dict-item] # lists of JSON values
                "outputs": _specs(signature.outputs),  # type: ignore[dict-item] # as above
                "parameters": {"ingot-version": version.digest, "ingot-model": version.model},
            }
        )

    async def prometheus(self, request: "Request") -> "Response":
        await self.admit(request, "metrics")
        from starlette.responses import Response

        text = await self._desk.ask(self._metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: "Request") -> "Response":
        await self.admit(request)
        return _json(describe_jobs(self._desk.name))

    async def refused(self, request: "Request", error: Exception) -> "Response":
        from starlette.exceptions import HTTPException

        assert isinstance(error, HTTPException)
        words = f"No page answers {request.method} {request.url.path[:200]}. Start at /v2/models/"
        return problem(
            error.status_code, f"{words}{self._desk.name}/jobs.", dict(error.headers or {})
        )

    async def denied(self, _request: "Request", error: Exception) -> "Response":
        assert isinstance(error, RequestError)
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        return problem(error.status, str(error), headers)

    async def crashed(self, request: "Request", error: Exception) -> "Response":
        log.error("%s failed", request.url.path, exc_info=error)
        return problem(500, "The server failed. Its log says why.")


def _json(value: Json, status: int = 200) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse(value, status)
