"""From a request's bytes to checked values, with errors that name the value, the limit and the remedy."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from starlette.requests import ClientDisconnect, Request

from service.embedder import Embedder
from service.errors import (
    BodyTooLarge,
    EmptyInput,
    InvalidInput,
    MalformedRequest,
    RequestTimeout,
    UnsupportedMediaType,
    name_inputs,
)

# A client that sends slower than this is cut off; ten megabytes take a second on any real network.
BODY_TIMEOUT_S = 30.0


class Body(BaseModel):
    """A request body. Fields it does not know are ignored, but counted."""

    model_config = ConfigDict(extra="allow", frozen=True)


B = TypeVar("B", bound=Body)


def embedder_of(request: Request) -> Embedder:
    """The embedder of the app that got this request."""
    embedder: Embedder = request.app.state.embedder
    return embedder


async def read(request: Request, shape: type[B]) -> B:
    """The request's body as the shape asked for."""
    embedder = embedder_of(request)
    body = await _read_bytes(request, embedder.settings.max_body_bytes)
    try:
        parsed = shape.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error, shape) from error
    if unknown := _unknown_fields(parsed):
        embedder.metrics.unknown_fields.labels(request.scope["path"]).inc(unknown)
        # Counted, and let go: the body lives as long as its request waits.
        parsed.__pydantic_extra__ = {}
    return parsed


def parse_texts(value: JsonValue, name: str, max_inputs: int, *, empty: bool = False) -> list[str]:
    """One text or a list of texts."""
    found = parse_inputs(value, name, max_inputs, empty=empty)
    wrong = [index for index, item in enumerate(found) if not isinstance(item, str)]
    if wrong:
        raise InvalidInput(f"`{name}` must hold texts; {name_inputs(wrong)} is a list of numbers")
    return [item for item in found if isinstance(item, str)]


def parse_inputs(value: JsonValue, name: str, max_inputs: int, *, empty: bool = False) -> list[str | list[int]]:
    """TEI's four forms of inputs: a text, a list of ids, and lists of texts or of lists of ids, mixed or not.

    empty: whether an input may be empty; the list itself never may.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise InvalidInput(f"`{name}` must be a text or a list of texts, not {_kind(value)}")
    if not value:
        raise EmptyInput(f"`{name}` cannot be empty")
    if all(_is_id(item) for item in value):
        value = [value]
    if len(value) > max_inputs:
        raise InvalidInput(
            f"batch size {len(value)} > maximum allowed batch size {max_inputs}; split the request, "
            "or raise ME5_MAX_INPUTS"
        )
    found: list[str | list[int]] = []
    wrong: list[tuple[int, JsonValue]] = []
    for index, item in enumerate(value):
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list) and all(_is_id(part) for part in item):
            found.append([part for part in item if isinstance(part, int)])
        else:
            wrong.append((index, item))
    if wrong:
        raise InvalidInput(
            f"`{name}` must hold texts or lists of token ids; {name_inputs([index for index, _ in wrong])} "
            f"{'is' if len(wrong) == 1 else 'are not: the first is'} {_kind(wrong[0][1])}"
        )
    blank = [index for index, item in enumerate(found) if not item]
    if blank and not empty:
        where = "" if len(found) == 1 else f" ({name_inputs(blank)})"
        raise EmptyInput(f"`{name}` cannot be empty{where}")
    return found


async def _read_bytes(request: Request, limit_bytes: int) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"a body with content-encoding {encoding[:40]!r} is not read; send plain JSON")
    declared = request.headers.get("content-length", "")
    too_large = declared.isdecimal() and int(declared) > limit_bytes
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                # What is over the limit is read and dropped: a client that is still sending when the connection
                # closes sees a broken pipe in place of the answer that says why.
                if not too_large and size <= limit_bytes:
                    chunks.append(chunk)
                elif size > 8 * limit_bytes:
                    break
    except TimeoutError as error:
        raise RequestTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s ({size} bytes did)") from error
    except ClientDisconnect as error:
        raise MalformedRequest("the connection closed before the body was complete") from error
    if too_large or size > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    return b"".join(chunks)


def _explain(error: ValidationError, shape: type[Body]) -> MalformedRequest | InvalidInput:
    items = error.errors(include_url=False, include_context=False)
    first = items[0]
    if first["type"] == "json_invalid":
        return MalformedRequest(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if not first["loc"]:
        needed = [name for name, field in shape.model_fields.items() if field.is_required()]
        return InvalidInput(f"the body must be a JSON object with {', '.join(needed)}")
    parts = []
    for item in items[:20]:
        field = ".".join(map(str, item["loc"]))
        given = "" if item["type"] == "missing" else f", given: {str(item['input'])[:80]!r}"
        parts.append(f"`{field}`: {item['msg'][:1].lower()}{item['msg'][1:]}{given}")
    return InvalidInput("; ".join(parts))


def _unknown_fields(body: Body) -> int:
    nested = (getattr(body, name) for name in type(body).model_fields)
    return len(body.model_extra or ()) + sum(_unknown_fields(part) for part in nested if isinstance(part, Body))


def _is_id(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: JsonValue) -> str:
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", dict: "an object"}
    return kinds.get(type(value), "a list of mixed values" if isinstance(value, list) else "a text")
