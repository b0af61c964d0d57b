"""The OpenAPI description of bodies that the routes read by themselves."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, JsonValue


def schema_of(shape: type[BaseModel]) -> dict[str, JsonValue]:
    """A route's `openapi_extra` for a JSON body of this shape, nested shapes written out in place."""
    schema = shape.model_json_schema()
    definitions = schema.pop("$defs", {})
    content: JsonValue = {"application/json": {"schema": inline(schema, definitions)}}
    return {"requestBody": {"required": True, "content": content}}


def inline(node: JsonValue, definitions: dict[str, JsonValue]) -> JsonValue:
    """The node with every `$ref` replaced by the definition it names."""
    if isinstance(node, dict):
        ref = node.get("$ref")
        if isinstance(ref, str):
            return inline(definitions[ref.rsplit("/", 1)[1]], definitions)
        return {key: inline(value, definitions) for key, value in node.items()}
    return [inline(item, definitions) for item in node] if isinstance(node, list) else node


# What every route that takes a body may answer beside 200, by either façade's shape of errors.
ERRORS = {
    400: "The body is not JSON, or an input is empty.",
    401: "No API key, or one that is not valid; only where the server was given keys.",
    403: "The API key may not do this.",
    408: "The body did not arrive in time.",
    413: "The body is larger than ME5_MAX_BODY_BYTES, or has more tokens than the API key may use at once.",
    415: "The body is compressed.",
    422: "A value is outside its limits; the message names the value, the limit and the remedy.",
    429: "Too much is waiting, or the API key's tokens are used up; Retry-After says when there will be room.",
    431: "The headers are too large.",
    500: "The engine failed on this request.",
    503: "No engine, too many connections, or the process is ending.",
    504: "The request's time is up.",
}
TEI_ERROR: dict[str, JsonValue] = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
OPENAI_ERROR: dict[str, JsonValue] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "null"},
                "code": {"type": "string"},
            },
        }
    },
}


def errors_of(shape: dict[str, JsonValue], statuses: Iterable[int] = ERRORS) -> dict[int | str, dict[str, object]]:
    """A route's `responses` for these statuses."""
    meanings = {**ERRORS, 404: "No such model."}
    return {
        status: {"description": meanings[status], "content": {"application/json": {"schema": shape}}}
        for status in statuses
    }
