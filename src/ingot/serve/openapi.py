"""The OpenAPI document of a server: every path, what it takes, and every way it answers."""

from collections.abc import Sequence

from ingot.models.model import Signature
from ingot.serve.documents import (
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
from ingot.serve.generation.documents import openai_paths, text_paths

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
        "/v2": page("Name and version of the server."),
        "/v2/health/live": page("Whether the process answers."),
        "/v2/health/ready": page("Whether requests should be sent here.", no=(503,)),
        "/metrics": page("Counts in Prometheus text format.", media="text/plain"),
        "/openapi.json": page("This document."),
    }
    named: set[str] = set()
    for endpoint in endpoints:
        model = f"/v2/models/{endpoint.version.name}"
        bases = [f"{model}/versions/{endpoint.version.number}"]
        if endpoint.version.name not in named:  # the first version answers for the name alone
            bases.insert(0, model)
        named.add(endpoint.version.name)
        if endpoint.traffic is not None:
            paths[f"{model}/traffic"] = _traffic()
        for base in bases:
            paths[base] = page("Inputs and outputs of the model.")
            paths[base + "/stats"] = stats_page()
            paths[base + "/ready"] = page("Whether the model answers.", no=(503,))
            if endpoint.generation is None:
                paths[base + "/infer"] = {"post": _infer(endpoint.model.signature)}
            else:
                paths |= text_paths(base, headers=_headers(), refusals=refusals(REFUSALS))
    if any(endpoint.generation for endpoint in endpoints):
        paths |= openai_paths(headers=_headers(), refusals=refusals(REFUSALS))
    return document("Ingot endpoint", paths, version=version)


def _traffic() -> Schema:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    change = {
        "type": "object",
        "maxProperties": 1,
        "properties": {
            "weights": {"type": "object", "additionalProperties": share},
            "roll_back": {"const": True},
            "start": {"const": True},
        },
        "additionalProperties": False,
    }
    item = page("How requests for the name are dealt among its versions, and every decision.")
    answers = item["get"]["responses"] | refusals((400, 413, 415, 422))
    body = {"required": True, "content": {"application/json": {"schema": change}}}
    summary = "Set weights, roll the canary back, or start it again."
    return item | {"post": {"summary": summary, "requestBody": body, "responses": answers}}


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
        "requestBody": json_body(infer_request(signature), {"one": infer_example(signature)}),
        "responses": {
            "200": {
                "description": "The outputs; bytes after the JSON if they were asked for.",
                "content": {
                    "application/json": {"schema": answer},
                    "application/octet-stream": octets,
                },
            },
            **refusals(REFUSALS),
        },
    }


def _headers() -> list[Schema]:
    return [
        {"name": name, "in": "header", "schema": schema, "description": words}
        for name, (schema, words) in _HEADERS.items()
    ]
