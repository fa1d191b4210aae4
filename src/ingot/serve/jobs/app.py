"""The web application of an endpoint that takes jobs only: health, metadata, and the job routes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingot.serve.access.rates import address_of
from ingot.serve.access.scopes import Principal
from ingot.serve.answers import (
    crash,
    describe_model,
    json_answer,
    problem,
    readiness,
    refusal,
)
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.ends import Ends
from ingot.serve.jobs.metrics import JobMetrics
from ingot.serve.jobs.openapi import describe_jobs
from ingot.serve.jobs.web import job_routes
from ingot.serve.problems import RequestError
from ingot.serve.surroundings import Surroundings

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute


def build_jobs_app(
    desk: JobDesk,
    metrics: JobMetrics,
    around: Surroundings | None = None,
    *,
    ends: Ends | None = None,
    more: "Sequence[BaseRoute]" = (),
) -> "Starlette":
    """Return the ASGI application of an endpoint that takes jobs only.

    Args:
        desk: What its routes ask.
        metrics: What `/metrics` shows.
        around: What stands around them but for the log; nobody is asked if not given.
        ends: Told of requests that were refused before they became jobs.
        more: Routes beside its own.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    around = around or Surroundings()
    middleware: list[Middleware] = []
    if around.tracer is not None:
        from ingot.serve.tracing import TracedPuts

        middleware.append(Middleware(TracedPuts, tracer=around.tracer, model=desk.name))

    pages = _Pages(desk, metrics, around)
    return Starlette(
        routes=[
            Route("/v2/health/live", pages.live),
            Route("/v2/health/ready", pages.ready),
            Route("/v2/models/{name}", pages.model),
            Route("/v2/models/{name}/stats", pages.stats),
            Route("/metrics", pages.prometheus),
            Route("/openapi.json", pages.openapi),
            *job_routes(
                desk,
                admit=pages.admit,
                still=None if around.gate is None else pages.identify,
                refused=None if ends is None else ends.note_refused,
            ),
            *more,
        ],
        middleware=middleware,
        exception_handlers={
            HTTPException: pages.refused,
            RequestError: refusal,
            Exception: crash,
        },
    )


class _Pages:
    def __init__(self, desk: JobDesk, metrics: JobMetrics, around: Surroundings) -> None:
        self._desk, self._metrics = desk, metrics
        self._gate, self._limits = around.gate, around.limits

    async def admit(self, request: "Request", action: str = "") -> None:
        """Let the caller pass, or raise: who puts, cancels or retries must be allowed to infer."""
        caller = await self.identify(request, action)
        if self._limits is not None and not action:
            self._limits.take(caller, address_of(request.scope["client"]))

    async def identify(self, request: "Request", action: str = "") -> Principal | None:
        """Return the caller if it may do this, without counting the request."""
        if self._gate is None:
            return None
        wanted = action or ("read" if request.method in {"GET", "HEAD"} else "infer")
        # a result is what an inference answers, so whoever may only read metadata does not get it
        if request.url.path.endswith("/result"):
            wanted = "infer"
        model = "" if wanted == "metrics" else self._desk.name
        caller = await self._gate.admit(request.headers.get("authorization", ""), wanted, model)
        request.state.client = caller.name
        return caller

    async def live(self, _request: "Request") -> "Response":
        return json_answer({"live": True})

    async def ready(self, _request: "Request") -> "Response":
        ready = self._desk.is_ready() and not self._desk.is_draining
        # everybody may ask this page, and a reason can name files: who needs a key gets none here
        reason = self._desk.trouble() if self._gate is None else ""
        return readiness({}, is_ready=ready, reason=reason)

    async def model(self, request: "Request") -> "Response":
        await self.admit(request)
        if request.path_params["name"] != self._desk.name:
            return problem(404, f"No model is named so here; {self._desk.name!r} is. Ask for it.")
        endpoint = self._desk.endpoint
        return json_answer(describe_model(endpoint, [endpoint.version.number]))

    async def stats(self, request: "Request") -> "Response":
        from ingot.serve.figures import show_stats, stats_of_log

        endpoint, name = self._desk.endpoint, request.path_params["name"]
        if self._gate is not None:
            proof = request.headers.get("authorization", "")
            caller = await self._gate.identify(proof)
            if not caller.may("metrics"):
                await self._gate.admit(proof, "read", self._desk.name)
        if name != self._desk.name:
            return problem(404, f"No model is named so here; {self._desk.name!r} is. Ask for it.")
        stats = await self._desk.ask(stats_of_log, endpoint)
        return json_answer(show_stats(stats, name, None, request.query_params))

    async def prometheus(self, request: "Request") -> "Response":
        await self.admit(request, "metrics")
        from starlette.responses import Response

        text = await self._desk.ask(self._metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: "Request") -> "Response":
        await self.admit(request)
        return json_answer(describe_jobs(self._desk.endpoint))

    async def refused(self, request: "Request", error: Exception) -> "Response":
        from starlette.exceptions import HTTPException

        assert isinstance(error, HTTPException)
        words = f"No page answers {request.method} {request.url.path[:200]}. "
        words += "Look at /openapi.json, or start at /v2/models/"
        return problem(
            error.status_code, f"{words}{self._desk.name}/jobs.", dict(error.headers or {})
        )
