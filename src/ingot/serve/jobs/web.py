"""HTTP routes of asynchronous jobs, as a list that an application mounts."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING

from ingot.core.names import suggest
from ingot.serve.answers import json_answer, problem, read_body, refusal
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.ends import End
from ingot.serve.jobs.job import MAX_INLINE_BYTES, Job, JobState, QuotaError, StoreError
from ingot.serve.jobs.openapi import MOST_DECISIONS, MOST_LISTED
from ingot.serve.jobs.origin import Origin, read_origin
from ingot.serve.jobs.places import read_result
from ingot.serve.jobs.status import job_path, show_job, show_new
from ingot.serve.problems import RequestError, encode_problem

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

log = logging.getLogger(__name__)

_LOOK_S = 0.05  # how often a followed job is looked at
_STILL_S = 1.0  # how often whoever follows is asked for its key again
_COMMENT_S = 15.0  # how often a silent event stream says that it lives
_NOT_KEPT = (
    "A job must be kept on disk before it is accepted; it could not be. Nothing was accepted; "
    "ask again later."
)
_NOT_READ = (
    "Jobs must be read from, or changed on, the disk or server that keeps them; they could not be. "
    "What was accepted is safe; ask again later."
)
Page = Callable[["Request"], Awaitable["Response"]]
Admit = Callable[["Request"], Awaitable[object]]


def job_routes(
    desk: JobDesk,
    *,
    admit: Admit | None = None,
    still: Admit | None = None,
    refused: Callable[[End], None] | None = None,
) -> "list[BaseRoute]":
    """Return the routes under `/v2/models/{name}/jobs` and `/v2/models/{name}/scaling`.

    Every error is a problem document (RFC 9457).

    Args:
        desk: What they ask.
        admit: Asked before every page; it refuses a caller with `RequestError` (401 or 403).
        still: Asked every second while a stream of events is open; it refuses in the same way.
        refused: Told, in a thread, of requests that were to become jobs and did not.
    """
    from starlette.routing import Route

    pages = _Pages(desk, still)
    jobs = "/v2/models/{name}/jobs"
    # one route for all methods of a path, so that a refusal of another one can name them all
    return [
        Route(
            path,
            _watched(desk, _guarded(desk, by_method, admit), refused),
            methods=list(by_method),
        )
        for path, by_method in (
            (jobs, {"POST": pages.submit, "GET": pages.listing}),
            (jobs + "/{job}", {"GET": pages.status, "DELETE": pages.cancel}),
            (jobs + "/{job}/retry", {"POST": pages.retry}),
            (jobs + "/{job}/result", {"GET": pages.result}),
            (jobs + "/{job}/events", {"GET": pages.events}),
            ("/v2/models/{name}/scaling", {"GET": pages.scaling}),
        )
    ]


def _guarded(desk: JobDesk, by_method: Mapping[str, Page], admit: Admit | None) -> Page:
    """Return the pages of a path as one, with every refusal as a problem document."""

    async def answer(request: "Request") -> "Response":
        try:
            if admit is not None:
                await admit(request)
            name = request.path_params["name"]
            if name != desk.name:
                words = f"No model is named {name!r} here. {suggest(name, [desk.name])}"
                return problem(404, words)
            method = "GET" if request.method == "HEAD" else request.method
            return await by_method[method](request)
        except RequestError as error:
            return await refusal(request, error)
        except QuotaError as error:
            return problem(429, str(error), {"retry-after": "5"})
        except StoreError as error:
            log.error("%s %s: %s", request.method, request.url.path, error)
            if _is_put(request):
                return problem(507, _NOT_KEPT, {"retry-after": "30"})
            return problem(503, _NOT_READ, {"retry-after": "30"})

    return answer


def _is_put(request: "Request") -> bool:
    return request.method == "POST" and "job" not in request.path_params


def _watched(desk: JobDesk, page: Page, refused: Callable[[End], None] | None) -> Page:
    """Return the page; a refused put is told."""
    if refused is None:
        return page

    async def answer(request: "Request") -> "Response":
        arrived = time.time()
        response = await page(request)
        if _is_put(request) and response.status_code >= HTTPStatus.BAD_REQUEST:
            client = getattr(request.state, "client", "")
            try:
                origin = read_origin(request.headers, client)
            except RequestError:  # that may be why it was refused
                origin = Origin(client=client)
            end = End(str(uuid.uuid4()), arrived, response.status_code, origin.to_text())
            await desk.ask(refused, end)
        return response

    return answer


class _Pages:
    def __init__(self, desk: JobDesk, still: Admit | None) -> None:
        self._desk, self._still = desk, still

    async def submit(self, request: "Request") -> "Response":
        if self._desk.is_draining or not self._desk.is_ready():
            words = "The endpoint must be running to accept jobs; it is not. Ask again later."
            return problem(503, words, {"retry-after": "5", "connection": "close"})
        self._desk.need_room()
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            words = f"A body must be sent as it is; got content-encoding {encoding[:32]!r}. "
            raise RequestError(words + "Turn compression off in the client.", status=415)
        body = await read_body(
            request, "A job's request", most_bytes=MAX_INLINE_BYTES,
            advice="Write it to a file and send its place as input_uri.",
        )  # fmt: skip
        origin = read_origin(request.headers, getattr(request.state, "client", ""))
        key = request.headers.get("idempotency-key", "")
        job = self._desk.read(body, key, origin.to_text())
        placed = await self._desk.put(job)
        if not placed.is_same:
            raise RequestError(
                "An idempotency key must stand for one request; this one stands for another, job "
                f"{placed.id}. Use a new key.",
                status=422,
            )
        path = job_path(self._desk.name, placed.id)
        headers = {"location": path, "ingot-version": self._desk.endpoint.version.digest}
        if placed.is_new:
            return json_answer(show_new(job), 202, headers)
        found = await self._desk.get(placed.id)
        headers["idempotency-replayed"] = "true"
        return json_answer(show_new(job) if found is None else show_job(found), 202, headers)

    async def listing(self, request: "Request") -> "Response":
        query = request.query_params
        state = query.get("state")
        if state is not None and state not in {s.value for s in JobState}:
            names = suggest(state, [s.value for s in JobState])
            raise RequestError(f"No job is ever {state[:40]!r}. {names}")
        limit = _number(query.get("limit", "100"), "limit", MOST_LISTED)
        found = await self._desk.ask(
            self._desk.store.jobs,
            self._desk.name,
            state=JobState(state) if state is not None else None,
            limit=limit,
            after=query.get("after"),
        )
        counts = await self._desk.ask(self._desk.store.counts, self._desk.name)
        return json_answer(
            {
                "model": self._desk.name,
                "counts": {state.value: n for state, n in counts.items()},
                "jobs": [show_job(job) for job in found],
                "after": found[-1].id if len(found) == limit else None,
            }
        )

    async def status(self, request: "Request") -> "Response":
        return json_answer(show_job(await self._job(request)))

    async def cancel(self, request: "Request") -> "Response":
        job = await self._job(request)
        ended = await self._desk.ask(self._desk.store.cancel, job.id)
        if ended is None or ended.state is not JobState.CANCELLED:
            state = ended.state.value if ended is not None else "forgotten"
            words = f"A job can be cancelled until it ends; this one is {state}. Nothing was done."
            return problem(409, words)
        return json_answer(show_job(ended))

    async def retry(self, request: "Request") -> "Response":
        job = await self._job(request)
        revived = await self._desk.retry([job.id])
        found = await self._job(request)
        if not revived:
            words = (
                "A job can be retried once it is dead, for only the dead keep their requests; this "
                f"one is {found.state.value}. Nothing was done. "
            )
            return problem(409, words + ("Put it anew." if found.state.is_end else "Wait for it."))
        return json_answer(show_job(found))

    async def result(self, request: "Request") -> "Response":
        from starlette.responses import StreamingResponse

        job = await self._job(request)
        if job.state is not JobState.SUCCEEDED:
            words = f"A result is there once its job has succeeded; this one is {job.state.value}."
            if not job.state.is_end:
                return problem(409, words + " Ask again, or follow its events.",
                               {"retry-after": "1"})  # fmt: skip
            return problem(409, f"{words} {job.error}".rstrip())
        try:
            pieces = await self._desk.ask(read_result, job.output)
        except OSError as error:
            log.error("result of job %s: %s", job.id, error)
            words = "A result must be where it was written; it is not there any more. Ask anew."
            return problem(404, words)
        kind = "application/jsonl" if job.output.endswith(".jsonl") else "application/json"
        headers = {"ingot-version": self._desk.endpoint.version.digest}
        if "://" not in job.output:
            headers["content-length"] = str(job.result_bytes)
        return StreamingResponse(pieces, headers=headers, media_type=kind)

    async def events(self, request: "Request") -> "Response":
        from starlette.responses import Response, StreamingResponse

        job = await self._job(request)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        events = self._admitted(request, self._follow(job))
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")

    async def scaling(self, request: "Request") -> "Response":
        after = _number(request.query_params.get("after", "0"), "after", 2**62, least=0)
        limit = _number(request.query_params.get("limit", "1000"), "limit", MOST_DECISIONS)
        rows = await self._desk.ask(
            self._desk.decisions.read, self._desk.name, after=after, limit=limit
        )
        return json_answer({"model": self._desk.name, "decisions": [row.to_json() for row in rows]})

    async def _job(self, request: "Request") -> Job:
        name = request.path_params["job"]
        job = await self._desk.get(name)
        if job is None:
            raise RequestError(
                f"A job must be known to this endpoint; {name[:80]!r} is not. It may have been "
                "forgotten after its retention. List what there is at /v2/models/NAME/jobs.",
                status=404,
            )
        return job

    async def _admitted(
        self, request: "Request", events: AsyncGenerator[str, None]
    ) -> AsyncIterator[str]:
        """Give what is not empty, while the caller may have it: keys expire and are revoked."""
        looked = time.monotonic()
        async with aclosing(events):
            async for event in events:
                if self._still is not None and time.monotonic() - looked >= _STILL_S:
                    looked = time.monotonic()
                    if refused := await _refused(self._still, request):
                        yield refused
                        return
                if event:
                    yield event

    async def _follow(self, job: Job) -> AsyncGenerator[str, None]:
        """Give an event for each change of a job, until it has ended; empty ones between."""
        told, silent_s, number = None, 0.0, 0
        found: Job | None = job
        while found is not None:
            if (found.state, found.attempt) != told:
                told, silent_s, number = (found.state, found.attempt), 0.0, number + 1
                data = json.dumps(show_job(found))
                yield f"id: {number}\nevent: {found.state.value}\ndata: {data}\n\n"
            if found.state.is_end or self._desk.is_draining:
                return
            yield ""
            await asyncio.sleep(_LOOK_S)
            silent_s += _LOOK_S
            if silent_s >= _COMMENT_S:
                silent_s = 0.0
                yield ": still here\n\n"
            found = await self._desk.get(job.id)


async def _refused(still: Admit, request: "Request") -> str:
    """Return the event that tells a caller why it gets nothing more; empty if it does."""
    try:
        await still(request)
    except RequestError as error:
        words = encode_problem(error.status, str(error)).decode()
        return f"event: problem\ndata: {words}\n\n"
    return ""


def _number(text: str, name: str, most: int, *, least: int = 1) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    raise RequestError(
        f"{name} must be a whole number from {least} to {most:,}; got {text[:40]!r}. Change it."
    )
