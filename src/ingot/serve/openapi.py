"""The OpenAPI document of a server: every path, what it takes, and every way it answers."""

from collections.abc import Sequence
from typing import Any

from ingot.models.model import Signature, TensorSpec
from ingot.serve.datatypes import NUMPY_OF, kind_of, wire_name
from ingot.serve.endpoint import Endpoint
from ingot.serve.generation.documents import openai_paths, text_paths
from ingot.serve.problems import PROBLEM_TYPE

# Any below is JSON Schema.
Schema = dict[str, Any]
_JSON_OF = {"bool": "boolean", "int": "integer", "float": "number"}
_REFUSALS = {
    400: "Not a request, or tensors that do not fit.",
    401: "No valid key or token.",
    403: "The caller is not allowed this.",
    404: "Not served here.",
    405: "Another method is right.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The engine refuses these inputs.",
    429: "Too many requests wait.",
    431: "The headers are too large.",
    500: "The engine failed.",
    503: "The endpoint is stopping, or a worker died.",
    504: "Not answered in time.",
}
_PAGE_REFUSALS = (401, 403, 404, 405, 408, 431)
_HEADERS = {
    "x-request-id": ({"type": "string"}, "Comes back in the answer and in the log."),
    "ingot-unit": ({"type": "string", "maxLength": 128}, "Who is randomized in an experiment."),
    "ingot-episode": ({"type": "string", "maxLength": 128}, "Sequence that the request is in."),
    "ingot-step": ({"type": "integer", "minimum": 0}, "Position in that sequence."),
    "ingot-timeout-ms": (
        {"type": "integer", "minimum": 1},
        "Milliseconds after which the caller no longer wants an answer.",
    ),
}


def openapi(endpoints: Sequence[Endpoint], *, version: str) -> Schema:
    """Return the document, OpenAPI 3.1.

    Args:
        endpoints: What is served.
        version: Of the server.
    """
    paths = {
        "/v2": _page("Name and version of the server."),
        "/v2/health/live": _page("Whether the process answers."),
        "/v2/health/ready": _page("Whether requests should be sent here.", refusals=(503,)),
        "/metrics": _page("Counts in Prometheus text format.", media="text/plain"),
        "/openapi.json": _page("This document."),
    }
    named: set[str] = set()
    for endpoint in endpoints:
        model = f"/v2/models/{endpoint.version.name}"
        bases = [f"{model}/versions/{endpoint.version.number}"]
        if endpoint.version.name not in named:  # the first version answers for the name alone
            bases.insert(0, model)
        named.add(endpoint.version.name)
        for base in bases:
            paths[base] = _page("Inputs and outputs of the model.")
            paths[base + "/ready"] = _page("Whether the model answers.", refusals=(503,))
            if endpoint.generation is None:
                paths[base + "/infer"] = {"post": _infer(endpoint.model.signature)}
            else:
                paths |= text_paths(base, headers=_headers(), refusals=_refusals(_REFUSALS))
    if any(endpoint.generation for endpoint in endpoints):
        paths |= openai_paths(headers=_headers(), refusals=_refusals(_REFUSALS))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ingot endpoint", "version": version},
        "paths": paths,
        "components": {
            "schemas": {"Problem": _problem()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _page(summary: str, *, media: str = "application/json", refusals: Sequence[int] = ()) -> Schema:
    answers: Schema = {"200": {"description": "Yes.", "content": {media: {}}}}
    answers |= _refusals(_PAGE_REFUSALS)
    if refusals:
        answers |= {
            str(status): {"description": "No.", "content": {media: {}}} for status in refusals
        }
    return {"get": {"summary": summary, "responses": answers}}


def _infer(signature: Signature) -> Schema:
    octets = {"schema": {"type": "string", "format": "binary"}}
    answer = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {"outputs": {"type": "array", "items": {"type": "object"}}},
    }
    return {
        "summary": "One inference.",
        "parameters": _headers(),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _request(signature)}},
        },
        "responses": {
            "200": {
                "description": "The outputs; bytes after the JSON if they were asked for.",
                "content": {
                    "application/json": {"schema": answer},
                    "application/octet-stream": octets,
                },
            },
            **_refusals(_REFUSALS),
        },
    }


def _headers() -> list[Schema]:
    return [
        {"name": name, "in": "header", "schema": schema, "description": words}
        for name, (schema, words) in _HEADERS.items()
    ]


def _request(signature: Signature) -> Schema:
    names = [spec.name for spec in signature.outputs]
    output = {"type": "object", "required": ["name"], "properties": {"name": {"enum": names}}}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {
                "type": "array",
                "minItems": len(signature.inputs),
                "maxItems": len(signature.inputs),
                "items": {"oneOf": [_tensor(spec) for spec in signature.inputs]},
            },
            "outputs": {"type": "array", "items": output},
            "parameters": {"type": "object"},
        },
    }


def _tensor(spec: TensorSpec) -> Schema:
    datatype = wire_name(spec.dtype)
    number = {"type": _JSON_OF[kind_of(datatype)]} if datatype in NUMPY_OF else {}
    sizes = [{"const": axis} if isinstance(axis, int) else {"minimum": 1} for axis in spec.shape]
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": datatype},
            "shape": {
                "type": "array",
                "prefixItems": [{"type": "integer"} | size for size in sizes],
                "minItems": len(sizes),
                "maxItems": len(sizes),
            },
            "data": {"type": "array", "items": number},
            "parameters": {"type": "object"},
        },
    }


def _refusals(statuses: "Sequence[int] | dict[int, str]") -> Schema:
    problem = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        str(status): {"description": _REFUSALS[status], "content": problem} for status in statuses
    }


def _problem() -> Schema:
    words = {name: {"type": "string"} for name in ("type", "title", "detail", "error")}
    return {
        "type": "object",
        "required": [*words, "status"],
        "properties": words | {"status": {"type": "integer"}},
    }
