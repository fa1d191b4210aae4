"""The web application of an endpoint that takes jobs only: health, metadata, and the job routes."""

import logging
from typing import TYPE_CHECKING

from ingot.serve.app import _specs
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.web import job_routes, problem

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)


def build_jobs_app(desk: JobDesk) -> "Starlette":
    """Return the ASGI application of an endpoint that takes jobs only.

    Args:
        desk: What its routes ask.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def ready() -> bool:
        return desk.is_ready() and not desk.is_draining

    async def live_page(_request: "Request") -> "Response":
        return JSONResponse({"live": True})

    async def ready_page(_request: "Request") -> "Response":
        return JSONResponse({"ready": ready()}, 200 if ready() else 503)

    async def model_page(request: "Request") -> "Response":
        if request.path_params["name"] != desk.name:
            return problem(404, f"No model is named so here; {desk.name!r} is. Ask for it.")
        version, signature = desk.endpoint.version, desk.endpoint.model.signature
        return JSONResponse(
            {
                "name": version.name,
                "versions": [str(version.number)],
                "platform": f"onnx_{version.config.engine}",
                "inputs": _specs(signature.inputs),
                "outputs": _specs(signature.outputs),
                "parameters": {"ingot-version": version.digest, "ingot-model": version.model},
            }
        )

    async def refused(request: "Request", error: Exception) -> "Response":
        assert isinstance(error, HTTPException)
        words = f"No page answers {request.method} {request.url.path[:200]}. Start at /v2/models/"
        headers = dict(error.headers or {})
        return problem(error.status_code, f"{words}{desk.name}/jobs.", headers)

    async def crashed(request: "Request", error: Exception) -> "Response":
        log.error("%s failed", request.url.path, exc_info=error)
        return problem(500, "The server failed. Its log says why.")

    return Starlette(
        routes=[
            Route("/v2/health/live", live_page),
            Route("/v2/health/ready", ready_page),
            Route("/v2/models/{name}", model_page),
            *job_routes(desk),
        ],
        exception_handlers={HTTPException: refused, Exception: crashed},
    )
