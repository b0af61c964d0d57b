"""The OpenAPI description of bodies that the routes read by themselves."""

from __future__ import annotations

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
