"""The routes of texts as a part of a server's OpenAPI document."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ingot.serve.generation.chat import ChatRequest
from ingot.serve.generation.completions import CompletionRequest
from ingot.serve.generation.generate import Parameters

# Any below is JSON Schema.
Schema = dict[str, Any]
_EVENTS = "text/event-stream"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")
            },
        }
    },
}


def text_paths(
    base: str, *, headers: Sequence[Schema], refusals: Mapping[str, Schema]
) -> dict[str, Schema]:
    """Return the paths of the generate extension.

    Args:
        base: Path of a model.
        headers: Parameters of a request.
        refusals: How it is refused, by status.
    """
    asked = {
        "type": "object",
        "required": ["text_input"],
        "properties": {
            "text_input": {"type": "string", "examples": ["ONCE upon a time"]},
            "id": {"type": "string"}, "parameters": _schema(Parameters),
        },
    }  # fmt: skip
    answer = {
        "type": "object",
        "required": ["text_output", "model_name"],
        "properties": {
            "text_output": {"type": "string"}, "model_name": {"type": "string"},
            "model_version": {"type": "string"}, "details": {"type": "object"},
            "finish_reason": {"enum": ["length", "eos_token", "stop_sequence"]},
            "usage": {"type": "object"},
        },
    }  # fmt: skip
    failed = {"424": {"description": "The engine failed on this text."} | _content(refusals["500"])}
    kinds = {
        "/generate": ("One text, whole.", "application/json"),
        "/generate_stream": ("One text, piece by piece.", _EVENTS),
    }
    schemas = {"application/json": answer, _EVENTS: _event(answer)}
    return {
        base + path: {
            "post": _operation(summary, asked, headers)
            | {
                "responses": {
                    "200": _found({media: {"schema": schemas[media]}}), **refusals, **failed,
                }
            }
        }
        for path, (summary, media) in kinds.items()
    }  # fmt: skip


def _event(answer: Schema) -> Schema:
    """Return the schema of an event, whose data are an answer or why there is no more.

    OpenAPI 3.1 has no word for the events of a stream; what reads it takes the schema for each.
    """
    broken = {
        "type": "object", "required": ["error"], "properties": {"error": {"type": "string"}},
    }  # fmt: skip
    data = {
        "type": "string", "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [answer, broken]},
    }  # fmt: skip
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def openai_paths(*, headers: Sequence[Schema], refusals: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the paths of the OpenAI API.

    Args:
        headers: Parameters of a request.
        refusals: How a request of the other protocol is refused, by status.
    """
    error = {"content": {"application/json": {"schema": _ERROR}}}
    statuses = {**refusals, "424": {"description": "The engine failed on this text."}}
    refused = {
        status: {"description": row["description"]} | error for status, row in statuses.items()
    }
    found = {"application/json": {"schema": {"type": "object"}}, _EVENTS: {}}
    posts = {
        "/v1/completions": ("A completion.", _schema(CompletionRequest)),
        "/v1/chat/completions": ("An answer in a chat.", _schema(ChatRequest)),
    }
    pages = {"/v1/models": "Models that write texts.", "/v1/models/{name}": "One of them."}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        path: {
            "post": _operation(summary, asked, headers)
            | {"responses": {"200": _found(found), **refused}}
        }
        for path, (summary, asked) in posts.items()
    } | {
        path: {
            "get": {"summary": summary, "parameters": [name] if "{" in path else []}
            | {"responses": {"200": _found({"application/json": {}}), **refused}}
        }
        for path, summary in pages.items()
    }


def _schema(kind: type) -> Schema:
    """Return the schema of a request, with what it refers to inside."""
    (found,), parts = msgspec.json.schema_components([kind], ref_template="{name}")
    schema: Schema = parts.pop(found["$ref"])
    for name, place in schema["properties"].items():
        for option in place.get("anyOf", ()):
            if option.get("$ref") in parts:
                schema["properties"][name] = parts[option["$ref"]]
    return schema | {"additionalProperties": False}


def _operation(summary: str, asked: Schema, headers: Sequence[Schema]) -> Schema:
    return {
        "summary": summary,
        "parameters": list(headers),
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
    }


def _found(content: Schema) -> Schema:
    return {"description": "The text.", "content": content}


def _content(refusal: Schema) -> Schema:
    return {"content": refusal["content"]}
