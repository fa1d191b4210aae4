"""What the OpenAPI documents of every server have in common: refusals, tensors, examples."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ingot.models.model import Signature, TensorSpec
from ingot.serve.datatypes import NUMPY_OF, kind_of, wire_name
from ingot.serve.problems import PROBLEM_TYPE

# Any below is JSON Schema.
Schema = dict[str, Any]
_JSON_OF = {"bool": "boolean", "int": "integer", "float": "number"}
REFUSALS = {
    400: "Not a request, or tensors that do not fit.",
    401: "No valid key or token.",
    403: "The caller is not allowed this.",
    404: "Not served here.",
    405: "Another method is right.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The engine refuses these inputs.",
    429: "Too many requests wait, or come from this caller.",
    431: "The headers are too large.",
    500: "The engine failed.",
    503: "The endpoint is stopping, or a worker died.",
    504: "Not answered in time.",
}
PAGE_REFUSALS = (401, 403, 404, 405, 408, 429, 431)
_TOLD_WHEN = {429, 503, 507}  # these say after how long to ask again
_MOST_VALUES = 256  # an example of a larger model would be longer than the rest of its document


def document(title: str, paths: Schema, *, version: str) -> Schema:
    """Return an OpenAPI 3.1 document.

    Args:
        title: Of the server.
        paths: Its path items.
        version: Of the server.
    """
    names = ("type", "title", "detail", "error")
    words: Schema = {name: {"type": "string"} for name in names}
    problem = {
        "type": "object",
        "description": "What must hold, what came, what to do (RFC 9457).",
        "required": [*words, "status"],
        "properties": words | {"status": {"type": "integer"}},
    }
    bearer = {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a token of the identity provider, where the server asks.",
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": {"Problem": problem}, "securitySchemes": {"bearer": bearer}},
        "security": [{}, {"bearer": []}],
    }


def page(summary: str, *, media: str = "application/json", no: Iterable[int] = ()) -> Schema:
    """Return the path item of a page that is only read.

    Args:
        summary: What it says.
        media: Its media type.
        no: Statuses that are an answer of its own kind too, and no refusal.
    """
    answers: Schema = {"200": {"description": "Yes.", "content": {media: {}}}}
    answers |= refusals(PAGE_REFUSALS)
    answers |= {str(status): {"description": "No.", "content": {media: {}}} for status in no}
    return {"get": {"summary": summary, "responses": answers}}


def stats_page() -> Schema:
    """Return the path item of a model's figures."""
    item = page("Requests, errors and latency quantiles of the last minutes.")
    window = {"type": "number", "exclusiveMinimum": 0, "maximum": 3600}
    asked = {
        "window_s": (window, "Seconds back from now; 300 if not given."),
        "windows": ({"type": "boolean"}, "Whether the figures of each ten seconds come too."),
    }
    item["get"]["parameters"] = [
        {"name": name, "in": "query", "schema": schema, "description": words}
        for name, (schema, words) in asked.items()
    ]
    item["get"]["responses"] |= refusals((400,))
    return item


def refusals(statuses: Iterable[int], words: Mapping[int, str] = REFUSALS) -> Schema:
    """Return the answers that are problem documents.

    Args:
        statuses: Which.
        words: What each means.
    """
    problem = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    again = {
        "retry-after": {"schema": {"type": "integer"}, "description": "Seconds to wait."},
    }
    return {
        str(status): {"description": words[status], "content": problem}
        | ({"headers": again} if status in _TOLD_WHEN else {})
        for status in statuses
    }


def infer_request(signature: Signature) -> Schema:
    """Return the schema of an infer request as JSON."""
    names = [spec.name for spec in signature.outputs]
    output = {"type": "object", "required": ["name"], "properties": {"name": {"enum": names}}}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "inputs": {
                "type": "array",
                "minItems": len(signature.inputs),
                "maxItems": len(signature.inputs),
                "items": {"oneOf": [_tensor(spec) for spec in signature.inputs]},
            },
            "outputs": {"type": ["array", "null"], "items": output},
            "parameters": {"type": "object"},
        },
    }


def infer_example(signature: Signature) -> Schema | None:
    """Return a request that fits, with dynamic sizes of 1; None where that would be long."""
    # late: a server that nobody asks for its document needs neither
    from ingot.serve.protocol import encode_request
    from ingot.serve.warmup import sample_feeds

    shapes = ([size for size in spec.shape if isinstance(size, int)] for spec in signature.inputs)
    known = all(wire_name(spec.dtype) in NUMPY_OF for spec in signature.inputs)
    if not known or sum(math.prod(shape) for shape in shapes) > _MOST_VALUES:
        return None
    found: Schema = json.loads(encode_request(sample_feeds(signature, 1)))
    return found


def json_body(schema: Schema, examples: Mapping[str, Schema | None]) -> Schema:
    """Return the description of a body of JSON.

    Args:
        schema: What fits.
        examples: By name; those that are None are left out.
    """
    shown = {name: {"value": value} for name, value in examples.items() if value is not None}
    content: Schema = {"schema": schema} | ({"examples": shown} if shown else {})
    return {"required": True, "content": {"application/json": content}}


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
