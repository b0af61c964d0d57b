"""The OpenAPI description of bodies that the routes read by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, JsonValue


def schema_of(
    *shapes: type[BaseModel], examples: Mapping[str, JsonValue], parameters: Sequence[JsonValue] = ()
) -> dict[str, JsonValue]:
    """A route's `openapi_extra` for a JSON body of one of these shapes, nested shapes written out in place.

    examples: what may be sent, under a name that says what it is for.   parameters: of the address.
    """
    written = []
    for shape in shapes:
        schema = shape.model_json_schema()
        written.append(inline(schema, schema.pop("$defs", {})))
    content: dict[str, JsonValue] = {
        "schema": written[0] if len(written) == 1 else {"anyOf": written},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    body: dict[str, JsonValue] = {"requestBody": {"required": True, "content": {"application/json": content}}}
    return {**body, "parameters": [*parameters]} if parameters else body


def inline(node: JsonValue, definitions: dict[str, JsonValue]) -> JsonValue:
    """The node with every `$ref` replaced by the definition it names."""
    if isinstance(node, dict):
        ref = node.get("$ref")
        if isinstance(ref, str):
            return inline(definitions[ref.rsplit("/", 1)[1]], definitions)
        return {key: inline(value, definitions) for key, value in node.items()}
    return [inline(item, definitions) for item in node] if isinstance(node, list) else node
