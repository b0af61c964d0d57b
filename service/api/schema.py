"""The OpenAPI description of bodies that the routes read by themselves."""

from __future__ import annotations

from pydantic import BaseModel, JsonValue


def schema_of(*shapes: type[BaseModel]) -> dict[str, JsonValue]:
    """A route's `openapi_extra` for a JSON body of one of these shapes, nested shapes written out in place."""
    written = []
    for shape in shapes:
        schema = shape.model_json_schema()
        written.append(inline(schema, schema.pop("$defs", {})))
    content: JsonValue = {"application/json": {"schema": written[0] if len(written) == 1 else {"anyOf": written}}}
    return {"requestBody": {"required": True, "content": content}}


def inline(node: JsonValue, definitions: dict[str, JsonValue]) -> JsonValue:
    """The node with every `$ref` replaced by the definition it names."""
    if isinstance(node, dict):
        ref = node.get("$ref")
        if isinstance(ref, str):
            return inline(definitions[ref.rsplit("/", 1)[1]], definitions)
        return {key: inline(value, definitions) for key, value in node.items()}
    return [inline(item, definitions) for item in node] if isinstance(node, list) else node
