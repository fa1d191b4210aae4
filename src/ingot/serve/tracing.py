"""OpenTelemetry traces: a span per request, with what it waited for and what the engine took.

Nothing here is imported unless tracing is asked for. Spans carry what is listed in this file and
nothing else: no header but the request id, no body, no word of an exception.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ingot.core.extras import need
from ingot.data.data import Array
from ingot.runtime.engine import EngineConfig, ExecutedNode, Session
from ingot.serve.endpoint import Tracing
from ingot.serve.rides import RIDES, Ride
from ingot.serve.routing import MODEL, VERSION, Receive, Route, Scope, Send
from ingot.serve.runner import Runner

# Any below: the library is an extra, so its types are not known here.
_WHAT = "Tracing"
_QUEUE, _BATCH, _EVERY_MS = 4096, 512, 1000.0
_SEND_S = 2.0  # what a collector gets for one batch, and at the end for all that is left
_MOST_PATH = 256
_FIRST_FAILURE = 500
_CLIENT_GONE = 499
_PARENT = b"traceparent"
_CARRIED = {_PARENT: "traceparent", b"tracestate": "tracestate"}
WAIT, RUN = "ingot.wait", "ingot.run"


class Tracer:
    """Makes spans, and sends them in a thread of its own from a queue that drops when it is full.

    A trace that a caller began is continued, and kept if the caller keeps it; of those that begin
    here a fraction is kept.

    Args:
        tracing: Where to, and how many.
        exporter: Takes spans instead of a collector.

    Raises:
        MissingExtraError: The extra `otel` is not installed.
    """

    def __init__(self, tracing: Tracing, *, exporter: Any = None) -> None:
        sdk = need("opentelemetry.sdk.trace", extra="otel", what=_WHAT)
        export = need("opentelemetry.sdk.trace.export", extra="otel", what=_WHAT)
        sampling = need("opentelemetry.sdk.trace.sampling", extra="otel", what=_WHAT)
        resources = need("opentelemetry.sdk.resources", extra="otel", what=_WHAT)
        headers = need("opentelemetry.trace.propagation.tracecontext", extra="otel", what=_WHAT)
        self._api = need("opentelemetry.trace", extra="otel", what=_WHAT)
        self._exporter = _Bounded(exporter or open_exporter(tracing.url))
        self._provider = sdk.TracerProvider(
            sampler=sampling.ParentBased(sampling.TraceIdRatioBased(tracing.sample)),
            resource=resources.Resource.create({"service.name": "ingot"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            export.BatchSpanProcessor(
                self._exporter,
                max_queue_size=_QUEUE,
                max_export_batch_size=_BATCH,
                schedule_delay_millis=_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("ingot")
        self._propagator = headers.TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left, for two seconds at most, and end."""
        self._exporter.until = time.monotonic() + _SEND_S
        self._provider.shutdown()

    def route(self, route: Route, *, path: str = "") -> "TracedRoute":
        """Return a route whose requests are traced; `path` is that of an inference if not given."""
        return TracedRoute(self, route, path=path)

    def runner(self, runner: Runner) -> "TracedRunner":
        """Return a runner whose calls are traced."""
        return TracedRunner(self, runner)

    def session(self, session: Session) -> "TracedSession":
        """Return a session whose calls are traced."""
        return TracedSession(self, session)

    def begin(self, scope: Scope, route: str) -> Any:
        """Return the span of a request, begun now.

        Args:
            scope: The request.
            route: Its path, with names in braces for what varies.
        """
        carrier = {_CARRIED[k]: v.decode("latin-1") for k, v in scope["headers"] if k in _CARRIED}
        method = scope["method"]
        host, port = scope.get("server") or ("", None)
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "url.path": scope["path"][:_MOST_PATH],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "ingot.model": scope["path_params"].get("name", "")[:_MOST_PATH],
        }
        if host:
            attributes |= {"server.address": host, "server.port": port or 0}
        return self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(carrier) if carrier else None,
            kind=self._api.SpanKind.SERVER,
            attributes=attributes,
        )

    def end(self, span: Any, status: int, headers: Mapping[bytes, bytes]) -> None:
        """End the span of a request.

        Args:
            span: As `begin` returned it.
            status: HTTP status that was sent; 499 if the caller was gone.
            headers: Of the answer.
        """
        span.set_attribute("http.response.status_code", status)
        for name, header in (
            ("ingot.version", b"ingot-version"), ("ingot.request_id", b"x-request-id"),
        ):  # fmt: skip
            if header in headers:
                span.set_attribute(name, headers[header].decode("latin-1"))
        span.set_attribute("ingot.arm", headers.get(b"ingot-arm", b"main").decode("latin-1"))
        self._blame(span, status)
        span.end()

    def parent_of(self, span: Any) -> str:
        """Return the `traceparent` that whoever goes on with this request should send."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=self._api.set_span_in_context(span))
        return carrier.get("traceparent", "")

    def ride(self, span: Any) -> tuple[Ride, ...]:
        """Return what the engine's calls for a request are told; nothing if it is not kept."""
        if not span.is_recording():
            return ()
        return (Ride(self._api.set_span_in_context(span), time.time_ns()),)

    def note_call(self, rides: Iterable[Ride], start_ns: int, end_ns: int, *, failed: bool) -> None:
        """Give every request of one call of the engine its spans: the wait before, and the run."""
        riders = tuple(rides)
        for ride in riders:
            self._span(WAIT, ride.context, ride.arrived_ns, start_ns).end(start_ns)
            span = self._span(RUN, ride.context, start_ns, end_ns)
            span.set_attribute("ingot.call.requests", len(riders))
            if failed:
                span.set_status(self._api.StatusCode.ERROR)
            span.end(end_ns)

    def note_job(
        self,
        parent: str,
        times_ns: tuple[int, int, int],
        attributes: Mapping[str, Any],
        status: int,
    ) -> None:
        """Make the spans of a job that has ended, in the trace of the request that put it.

        Args:
            parent: The `traceparent` of that request; empty if there is none.
            times_ns: When it was put, when its last attempt began (0 if none did), and when it
                ended; UTC nanoseconds since 1970.
            attributes: Of the job.
            status: HTTP status that says how it ended.
        """
        put, began, ended = times_ns
        context = self._propagator.extract({"traceparent": parent}) if parent else None
        links = []
        if context is not None:
            links = [self._api.Link(self._api.get_current_span(context).get_span_context())]
        span = self._tracer.start_span(
            "ingot.job",
            context=context,
            kind=self._api.SpanKind.CONSUMER,
            attributes={**attributes, "http.response.status_code": status},
            links=links,
            start_time=put,
        )
        inside = self._api.set_span_in_context(span)
        if began:
            self._span(WAIT, inside, put, began).end(began)
            self._span(RUN, inside, began, ended).end(ended)
        self._blame(span, status)
        span.end(ended)

    def _span(self, name: str, context: Any, start_ns: int, end_ns: int) -> Any:
        return self._tracer.start_span(name, context=context, start_time=min(start_ns, end_ns))

    def _blame(self, span: Any, status: int) -> None:
        if status >= _FIRST_FAILURE or status == _CLIENT_GONE:
            span.set_attribute("error.type", str(status))
            span.set_status(self._api.StatusCode.ERROR)


class TracedRoute:
    """An ASGI application with a span around each request.

    Args:
        tracer: Makes it.
        app: Answers.
        path: The route; that of an inference if not given.
        passes_on: Whether the application is to see the span as its request's `traceparent`.
    """

    def __init__(
        self, tracer: Tracer, app: Route, *, path: str = "", passes_on: bool = False
    ) -> None:
        self._tracer, self._app, self._path, self._passes_on = tracer, app, path, passes_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_versioned = "number" in scope["path_params"]
        path = self._path or (VERSION if is_versioned else MODEL) + "/infer"
        span = self._tracer.begin(scope, path)
        token = RIDES.set(self._tracer.ride(span))
        status, headers = _CLIENT_GONE, dict[bytes, bytes]()

        async def watch(message: dict[str, Any]) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message["headers"])
            await send(message)

        if self._passes_on:
            others = [pair for pair in scope["headers"] if pair[0] != _PARENT]
            parent = self._tracer.parent_of(span).encode()
            scope = {**scope, "headers": [*others, (_PARENT, parent)]}
        try:
            await self._app(scope, receive, watch)
        finally:
            RIDES.reset(token)
            self._tracer.end(span, status, headers)


class TracedPuts:
    """Middleware with a span around each request that puts a job.

    Args:
        app: The rest of the application; it sees the span as the request's `traceparent`.
        tracer: Makes it.
        model: Name of the model.
    """

    # Any: an ASGI application of the framework
    def __init__(self, app: Any, *, tracer: Tracer, model: str) -> None:
        self._app, self._model = app, model
        self._path = f"{MODEL}/jobs".format(name=model)
        self._traced = TracedRoute(tracer, app, path=MODEL + "/jobs", passes_on=True)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_put = scope["type"] == "http" and scope["method"] == "POST"
        if is_put and scope["path"] == self._path:
            named = {**scope, "path_params": {"name": self._model}}
            await self._traced(named, receive, send)
        else:
            await self._app(scope, receive, send)


class TracedRunner:
    """A runner with spans for each call."""

    def __init__(self, tracer: Tracer, runner: Runner) -> None:
        self._tracer, self._runner = tracer, runner

    @property
    def ready(self) -> int:
        """How many processes can answer now."""
        return self._runner.ready

    async def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, as `Runner.run`."""
        rides = RIDES.get()
        if not rides:
            return await self._runner.run(feeds)
        start, failed = time.time_ns(), True
        try:
            outputs = await self._runner.run(feeds)
            failed = False
        finally:
            self._tracer.note_call(rides, start, time.time_ns(), failed=failed)
        return outputs


class TracedSession:
    """A session with spans for each call."""

    def __init__(self, tracer: Tracer, session: Session) -> None:
        self._tracer, self._session = tracer, session
        self.config: EngineConfig = session.config

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, as `Session.run`."""
        rides = RIDES.get()
        if not rides:
            return self._session.run(feeds)
        start, failed = time.time_ns(), True
        try:
            outputs = self._session.run(feeds)
            failed = False
        finally:
            self._tracer.note_call(rides, start, time.time_ns(), failed=failed)
        return outputs

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return the operations that really run, in order."""
        return self._session.executed()

    def close(self) -> None:
        """Free the engine's memory."""
        self._session.close()


class _Bounded:
    """An exporter that gives up some time after the end: a dead collector must not hold a stop."""

    def __init__(self, exporter: Any) -> None:
        results = need("opentelemetry.sdk.trace.export", extra="otel", what=_WHAT)
        self._exporter, self._results = exporter, results.SpanExportResult
        self.until = float("inf")

    def export(self, spans: Any) -> Any:
        if time.monotonic() > self.until:
            return self._results.FAILURE
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))


def open_exporter(url: str) -> Any:
    """Return what sends spans to a collector, by OTLP over HTTP.

    Args:
        url: Of the collector; without a path, that of the protocol is added.
    """
    otlp = need("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel", what=_WHAT)
    address = url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1/traces"
    return otlp.OTLPSpanExporter(endpoint=address, timeout=_SEND_S)
