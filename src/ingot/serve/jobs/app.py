"""The web application of an endpoint that takes jobs only: health, metadata, and the job routes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingot.serve.access.gate import Gate
from ingot.serve.answers import crash, describe_model, json_answer, problem, refusal
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.metrics import JobMetrics
from ingot.serve.jobs.openapi import describe_jobs
from ingot.serve.jobs.web import job_routes
from ingot.serve.problems import RequestError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute


def build_jobs_app(
    desk: JobDesk,
    metrics: JobMetrics,
    *,
    gate: Gate | None = None,
    more: "Sequence[BaseRoute]" = (),
) -> "Starlette":
    """Return the ASGI application of an endpoint that takes jobs only.

    Args:
        desk: What its routes ask.
        metrics: What `/metrics` shows.
        gate: Who may ask; None lets everybody.
        more: Routes beside its own.
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
            *more,
        ],
        exception_handlers={
            HTTPException: pages.refused,
            RequestError: refusal,
            Exception: crash,
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
        return json_answer({"live": True})

    async def ready(self, _request: "Request") -> "Response":
        ready = self._desk.is_ready() and not self._desk.is_draining
        return json_answer({"ready": ready}, 200 if ready else 503)

    async def model(self, request: "Request") -> "Response":
        await self.admit(request)
        if request.path_params["name"] != self._desk.name:
            return problem(404, f"No model is named so here; {self._desk.name!r} is. Ask for it.")
        endpoint = self._desk.endpoint
        return json_answer(describe_model(endpoint, [endpoint.version.number]))

    async def prometheus(self, request: "Request") -> "Response":
        await self.admit(request, "metrics")
        from starlette.responses import Response

        text = await self._desk.ask(self._metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: "Request") -> "Response":
        await self.admit(request)
        return json_answer(describe_jobs(self._desk.name))

    async def refused(self, request: "Request", error: Exception) -> "Response":
        from starlette.exceptions import HTTPException

        assert isinstance(error, HTTPException)
        words = f"No page answers {request.method} {request.url.path[:200]}. Start at /v2/models/"
        return problem(
            error.status_code, f"{words}{self._desk.name}/jobs.", dict(error.headers or {})
        )
