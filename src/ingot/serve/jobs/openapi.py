"""The job routes as an OpenAPI 3.1 document, for people, code generators and fuzzers."""

from importlib.metadata import version

from ingot.core.digest import Json
from ingot.serve.jobs.job import MAX_TIMEOUT_S, JobState

_TEXT: Json = {"type": "string"}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_COUNT: Json = {"type": "integer", "minimum": 0}
_STATES: Json = [state.value for state in JobState]
_PROBLEM: Json = {
    "description": "What must hold, what came, what to do (RFC 9457)",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT,
                },
            }
        }
    },
}  # fmt: skip
_TENSOR: Json = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": _TEXT,
        "shape": {"type": "array", "items": _COUNT},
        "datatype": _TEXT,
        "data": {"type": "array"},
    },
}
_REQUEST: Json = {
    "type": "object",
    "properties": {
        "inputs": {"type": "array", "items": _TENSOR},
        "input_uri": {"type": "string", "maxLength": 4096},
        "id": {"type": "string", "maxLength": 255},
        "ttl_s": {"type": "number", "exclusiveMinimum": 0, "maximum": 30 * 86_400},
        "timeout_s": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
        "notify": {"type": "string", "maxLength": 2048},
    },
}
_JOB: Json = {
    "type": "object",
    "required": ["job", "model", "state", "output", "status_url", "result_url", "events_url"],
    "properties": {
        "job": _TEXT, "model": _TEXT, "state": {"enum": _STATES}, "id": _TEXT_OR_NULL,
        "attempt": _COUNT, "failures": _COUNT, "lapses": _COUNT, "created": _TEXT_OR_NULL,
        "started": _TEXT_OR_NULL, "ended": _TEXT_OR_NULL, "input_uri": _TEXT_OR_NULL,
        "output": _TEXT, "result_bytes": _COUNT, "note": _TEXT_OR_NULL, "error": _TEXT_OR_NULL,
        "notification": _TEXT_OR_NULL, "status_url": _TEXT, "result_url": _TEXT,
        "events_url": _TEXT,
    },
}  # fmt: skip


def describe_jobs(name: str) -> dict[str, Json]:
    """Return the OpenAPI document of the jobs of one model.

    Args:
        name: Name of the model; it stands in the paths.
    """
    jobs = f"/v2/models/{name}/jobs"
    key = _parameter("idempotency-key", "header", {"type": "string", "maxLength": 255})
    state = _parameter("state", "query", {"enum": _STATES})
    limit = _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000})
    after = _parameter("after", "query", _TEXT)
    row = _parameter("after", "query", _COUNT)
    window = _parameter(
        "window_s", "query", {"type": "number", "exclusiveMinimum": 0, "maximum": 3600}
    )
    series = _parameter("windows", "query", {"type": "boolean"})
    job = _parameter("job", "path", _TEXT) | {"required": True}
    refusals = (400, 403, 404, 408, 413, 415, 422, 429, 503, 507)
    submit = _operation("Put a job", {202: _JOB}, refusals, [key])
    submit |= {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}}
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Jobs of {name}", "version": version("ingot")},
        "paths": {
            jobs: {
                "post": submit,
                "get": _operation("List jobs", {200: {}}, (400,), [state, limit, after]),
            },
            jobs + "/{job}": {
                "get": _operation("Status", {200: _JOB}, (404,), [job]),
                "delete": _operation("Cancel", {200: _JOB}, (404, 409), [job]),
            },
            jobs + "/{job}/result": {
                "get": _operation("Result", {200: {}}, (404, 409), [job]),
            },
            jobs + "/{job}/events": {
                "get": _operation("Events until the end", {200: None}, (404,), [job]),
            },
            f"/v2/models/{name}/stats": {
                "get": _operation("Ends, errors and latencies", {200: {}}, (400,), [window, series])
            },
            f"/v2/models/{name}/scaling": {
                "get": _operation("Scaling decisions", {200: {}}, (400,), [row, limit]),
            },
        },
    }


def _parameter(name: str, place: str, schema: Json) -> dict[str, Json]:
    return {"name": name, "in": place, "schema": schema}


def _operation(
    about: str,
    answers: dict[int, Json],
    refusals: tuple[int, ...],
    parameters: list[dict[str, Json]],
) -> dict[str, Json]:
    """Return one operation; an answer of None is a stream of events."""
    responses: dict[str, Json] = {}
    for status, schema in answers.items():
        kind = "text/event-stream" if schema is None else "application/json"
        content: Json = {kind: {} if schema is None else {"schema": schema}}
        responses[str(status)] = {"description": about, "content": content}
    responses |= {str(status): _PROBLEM for status in refusals}
    return {"summary": about, "parameters": parameters, "responses": responses}
