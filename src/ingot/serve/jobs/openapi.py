"""The routes of a server of jobs as an OpenAPI 3.1 document: people, code generators, fuzzers."""

from collections.abc import Iterable
from importlib.metadata import version

from ingot.core.digest import Json
from ingot.serve.documents import (
    PAGE_REFUSALS,
    REFUSALS,
    Schema,
    document,
    infer_example,
    infer_request,
    json_body,
    page,
    refusals,
    stats_page,
)
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.job import MAX_TIMEOUT_S, Job, JobState, NewJob
from ingot.serve.jobs.status import show_job, show_new

MOST_LISTED, MOST_DECISIONS = 1000, 10_000
_WORDS = REFUSALS | {
    400: "Not a request, or a figure out of its range.",
    404: "No such model or job, or its input or result is not there.",
    409: "The job is not in a state for this.",
    422: "The idempotency key stands for another request.",
    429: "Too many jobs wait, or too many requests come from this caller.",
    500: "The server failed.",
    503: "The endpoint is not ready or stopping, or its store cannot be read.",
    507: "The job could not be kept, so it was not accepted.",
}
_COMMON = (*PAGE_REFUSALS, 500, 503)
_TEXT: Json = {"type": "string"}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_COUNT: Json = {"type": "integer", "minimum": 0}
_STATES: Json = [state.value for state in JobState]
_ACTIONS: Json = ["start", "wake", "out", "in", "hold", "died"]
_ID = "00000000-0000-4000-8000-000000000000"
_HOW: Schema = {
    "id": {"type": "string", "maxLength": 255, "description": "The caller's own name for it."},
    "ttl_s": {
        "type": "number", "exclusiveMinimum": 0, "maximum": 30 * 86_400, "default": 86_400,
        "description": "Seconds it may wait to be started.",
    },
    "timeout_s": {
        "type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S, "default": 900,
        "description": "Seconds that an attempt may take.",
    },
    "notify": {
        "type": "string", "maxLength": 2048, "description": "URL that is told about the end.",
    },
}  # fmt: skip
_FIELDS: Schema = {
    "job": _TEXT, "model": _TEXT, "state": {"enum": _STATES}, "id": _TEXT_OR_NULL,
    "attempt": _COUNT, "failures": _COUNT, "lapses": _COUNT, "created": _TEXT_OR_NULL,
    "started": _TEXT_OR_NULL, "ended": _TEXT_OR_NULL, "input_uri": _TEXT_OR_NULL,
    "output": _TEXT, "result_bytes": _COUNT, "note": _TEXT_OR_NULL, "error": _TEXT_OR_NULL,
    "notification": _TEXT_OR_NULL, "status_url": _TEXT, "result_url": _TEXT, "events_url": _TEXT,
}  # fmt: skip
_DECISION: Schema = {
    "id": _COUNT, "time": {"type": "number"}, "action": {"enum": _ACTIONS}, "before": _COUNT,
    "instances": _COUNT, "backlog": _COUNT, "reason": _TEXT,
}  # fmt: skip


def describe_jobs(endpoint: Endpoint) -> Schema:
    """Return the OpenAPI document of the jobs of one model.

    Args:
        endpoint: What is served; its name stands in the paths, its signature in the requests.
    """
    name = endpoint.version.name
    model = f"/v2/models/{name}"
    jobs = f"{model}/jobs"
    job = _parameter("job", "path", _TEXT, required=True)
    paths: Schema = {
        "/v2/health/live": page("Whether the process answers."),
        "/v2/health/ready": page("Whether jobs are taken and would be answered.", no=(503,)),
        "/metrics": page("Backlog, instances and jobs by state.", media="text/plain"),
        "/openapi.json": page("This document."),
        model: page("Inputs and outputs of the model."),
        jobs: {"post": _submit(endpoint), "get": _list(name)},
        jobs + "/{job}": {
            "get": _operation("status", {200: _shown(name)}, (), [job]),
            "delete": _operation("cancel", {200: _shown(name)}, (409,), [job]),
        },
        jobs + "/{job}/retry": {
            "post": _operation("retry", {200: _shown(name)}, (409,), [job]),
        },
        jobs + "/{job}/result": {"get": _operation("result", {200: _result()}, (409,), [job])},
        jobs + "/{job}/events": {"get": _operation("events", {200: _events()}, (), [job])},
        f"{model}/stats": stats_page(),
        f"{model}/scaling": {"get": _scaling()},
    }
    return document(f"Jobs of {name}", paths, version=version("ingot"))


def _submit(endpoint: Endpoint) -> Schema:
    signature, name = endpoint.model.signature, endpoint.version.name
    inline = infer_request(signature)
    schema = inline | {"properties": inline["properties"] | _HOW}
    place: Schema = {
        "type": "object",
        "required": ["input_uri"],
        "properties": {"input_uri": {"type": "string", "maxLength": 4096}, "inputs": False} | _HOW,
    }
    schema["properties"]["input_uri"] = {"type": "null"}
    example = infer_example(signature)
    key = _parameter("idempotency-key", "header", {"type": "string", "maxLength": 255})
    new = NewJob(_ID, name, f"/var/lib/results/{name}/{_ID}.json")
    fields = _object(_FIELDS, ["job", "model", "state", "output", "status_url"])
    accepted = _json("Accepted; it is on disk.", fields, show_new(new))
    accepted["headers"] = {
        "location": {"schema": _TEXT, "description": "Where its status is."},
        "idempotency-replayed": {"schema": _TEXT, "description": "The key was known."},
    }
    accepted["links"] = {
        operation: {"operationId": operation, "parameters": {"job": "$response.body#/job"}}
        for operation in ("status", "cancel", "retry", "result", "events")
    }
    found = _operation("submit", {202: accepted}, (400, 413, 415, 422, 507), [key])
    body = json_body(
        {"oneOf": [schema, place]},
        {"inline": example, "place": {"input_uri": "s3://bucket/requests.jsonl", "ttl_s": 3600}},
    )
    return found | {"requestBody": body}


def _list(name: str) -> Schema:
    counts: Schema = _object({state.value: _COUNT for state in JobState})
    fields = {"model": _TEXT, "counts": counts, "after": _TEXT_OR_NULL,
              "jobs": {"type": "array", "items": _object(_FIELDS)}}  # fmt: skip
    known = {state.value: 0 for state in JobState} | {"succeeded": 1}
    example: Schema = {
        "model": name, "counts": known, "jobs": [show_job(_ended(name))], "after": None,
    }  # fmt: skip
    parameters = [
        _parameter("state", "query", {"enum": _STATES}),
        _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST_LISTED}),
        _parameter("after", "query", _TEXT),
    ]
    answer = _json("The newest jobs.", _object(fields), example)
    return _operation("list", {200: answer}, (400,), parameters)


def _scaling() -> Schema:
    fields: Schema = {"model": _TEXT, "decisions": {"type": "array", "items": _object(_DECISION)}}
    parameters = [
        _parameter("after", "query", _COUNT),
        _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST_DECISIONS}),
    ]
    answer = _json("Decisions with their reasons.", _object(fields))
    return _operation("scaling", {200: answer}, (400,), parameters)


def _result() -> Schema:
    kinds = ("application/json", "application/jsonl")
    return {"description": "The result, streamed.", "content": {kind: {} for kind in kinds}}


def _events() -> Schema:
    return {
        "description": "Server-sent events, one per change, until the job has ended.",
        "content": {"text/event-stream": {}},
    }


def _shown(name: str) -> Schema:
    return _json("The job as it is.", _object(_FIELDS), show_job(_ended(name)))


def _ended(name: str) -> Job:
    output = f"/var/lib/results/{name}/{_ID}.json"
    return Job(
        _ID, name, JobState.SUCCEEDED, 1, 0, 0, created=1.0, started=1.1, ended=1.2, output=output,
        input_uri="", caller_id="", error="", result_bytes=64, note="", notice="",
    )  # fmt: skip


def _object(fields: Schema, required: list[str] | None = None) -> Schema:
    names = list(fields) if required is None else required
    return {"type": "object", "required": names, "properties": fields}


def _json(about: str, schema: Schema, example: Schema | None = None) -> Schema:
    content = {"schema": schema} | ({"example": example} if example is not None else {})
    return {"description": about, "content": {"application/json": content}}


def _parameter(name: str, place: str, schema: Json, *, required: bool = False) -> Schema:
    return {"name": name, "in": place, "schema": schema, "required": required}


def _operation(
    name: str, answers: dict[int, Schema], more: Iterable[int], parameters: list[Schema]
) -> Schema:
    """Return one operation; its name is its id, and statuses of refusals are added to `more`."""
    found = {str(status): answer for status, answer in answers.items()}
    return {
        "operationId": name,
        "summary": name.capitalize(),
        "parameters": parameters,
        "responses": found | refusals(sorted({*_COMMON, *more}), _WORDS),
    }
