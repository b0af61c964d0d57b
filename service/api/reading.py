"""From a request's bytes to checked values, with errors that name the value, the limit and the remedy."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from service.api.guard import caller_of
from service.api.headers import headers_in
from service.api.intake import Intake
from service.api.large_json import PIECE_BYTES, parse_large, parse_small
from service.api.turns import Turns
from service.embedder import Embedder
from service.errors import (
    BodyTooLarge,
    EmptyInput,
    InvalidInput,
    MalformedRequest,
    Me5Error,
    RequestTimeout,
    UnsupportedMediaType,
    name_inputs,
)
from service.metrics import ROUTE_LABELS

# What a body may lag behind: after this time it has to come at this rate. Half-sent bodies are given up soon, and the
# largest one still has all of ME5_BODY_TIMEOUT_S.
BODY_GRACE_S = 5.0
BODY_BYTES_PER_S = 64 * 1024
# Of one that is refused, and only received so that its sender sees the answer.
REFUSED_GRACE_S = 1.0

# Ids that are looked at in one turn of the event loop.
IDS_A_TURN = 20_000


class Body(BaseModel):
    """A request body. Fields it does not know are ignored, but counted."""

    model_config = ConfigDict(extra="allow", frozen=True)


B = TypeVar("B", bound=Body)


def embedder_of(request: Request) -> Embedder:
    """The embedder of the app that got this request."""
    embedder: Embedder = request.app.state.embedder
    return embedder


def turns_of(request: Request) -> Turns:
    """Where the app's long work lines up."""
    turns: Turns = request.app.state.turns
    return turns


def header_of(request: Request, name: bytes) -> str | None:
    """A header by its lower-case name, the first where it is given twice."""
    value = headers_in(request.scope).get(name)
    return None if value is None else value.decode("latin-1")


def client_of(request: Request) -> str:
    """Who asks: the name of its key; where none is needed, a short hash of the key it gives all the same, so that no
    key is kept; else the address it comes from."""
    caller = caller_of(request.scope)
    if caller is not None:
        return caller.name
    given = header_of(request, b"authorization")
    if given:
        kind, _, key = given.partition(" ")
        secret = key.strip() if kind.lower() == "bearer" else given
        return hashlib.sha256(secret.encode("latin-1", "replace")).hexdigest()[:16]
    return request.client.host if request.client else ""


async def read(request: Request, shape: type[B]) -> B:
    """The request's body as the shape asked for."""
    return checked(request, await read_json(request), shape)


async def read_json(request: Request) -> object:
    """The value of the request's body."""
    body = await _read_bytes(request)
    if len(body) <= PIECE_BYTES:
        return parse_small(body)
    return await parse_large(body, turns_of(request), embedder_of(request).settings.max_inputs)


def checked(request: Request, value: object, shape: type[B]) -> B:
    """The value as the shape asked for; what the shape does not know is counted and let go."""
    try:
        parsed = shape.model_validate(value)
    except ValidationError as error:
        raise _explain(error, shape) from error
    if unknown := _unknown_fields(parsed):
        route = ROUTE_LABELS[request.scope["path"]]
        embedder_of(request).metrics.unknown_fields.labels(route).inc(unknown)
        # Counted, and let go: the body lives as long as its request waits.
        parsed.__pydantic_extra__ = {}
    return parsed


def parse_texts(value: object, name: str, max_inputs: int, *, empty: bool = False) -> list[str]:
    """One text or a list of texts."""
    found = parse_inputs(value, name, max_inputs, empty=empty)
    wrong = [index for index, item in enumerate(found) if not isinstance(item, str)]
    if wrong:
        raise InvalidInput(f"`{name}` must hold texts; {name_inputs(wrong)} is a list of numbers")
    return [item for item in found if isinstance(item, str)]


def parse_inputs(value: object, name: str, max_inputs: int, *, empty: bool = False) -> list[str | list[int]]:
    """TEI's four forms of inputs: a text, a list of ids, and lists of texts or of lists of ids, mixed or not.

    empty: whether an input may be empty; the list itself never may.
    """
    found: list[str | list[int]] = []
    for part in _input_parts(value, name, max_inputs, empty):
        found += part
    return found


async def parse_inputs_in_turns(
    request: Request, value: object, name: str, *, empty: bool = False
) -> list[str | list[int]]:
    """parse_inputs, for a list of any length: a million ids are looked at without holding the event loop up."""
    max_inputs = embedder_of(request).settings.max_inputs
    rows = value[:max_inputs] if isinstance(value, list) else []
    if sum(len(row) for row in rows if isinstance(row, list)) <= IDS_A_TURN:
        return parse_inputs(value, name, max_inputs, empty=empty)
    parts = await turns_of(request).collect(_input_parts(value, name, max_inputs, empty))
    return [item for part in parts for item in part]


def lower(value: object) -> object:
    """A text in lower case; anything else as it is, not written out for the sake of being refused."""
    return value.lower() if isinstance(value, str) else value


def upper(value: object) -> object:
    """A text in upper case; anything else as it is."""
    return value.upper() if isinstance(value, str) else value


def kind_of(value: object) -> str:
    """What a value is, for a message: "null", "a number", "an object"."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", dict: "an object"}
    return kinds.get(type(value), "a list of mixed values" if isinstance(value, list) else "a text")


def _input_parts(value: object, name: str, max_inputs: int, empty: bool) -> Iterator[list[str | list[int]]]:
    """The inputs in parts of about IDS_A_TURN ids."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise InvalidInput(f"`{name}` must be a text or a list of texts, not {kind_of(value)}")
    if not value:
        raise EmptyInput(f"`{name}` cannot be empty")
    if _are_ids(value):
        value = [value]
    if len(value) > max_inputs:
        raise InvalidInput(
            f"batch size {len(value)} > maximum allowed batch size {max_inputs}; split the request, "
            "or raise ME5_MAX_INPUTS"
        )
    wrong: list[tuple[int, object]] = []
    blank: list[int] = []
    part: list[str | list[int]] = []
    ids = 0
    for index, item in enumerate(value):
        if isinstance(item, str):
            part.append(item)
        elif isinstance(item, list) and _are_ids(item):
            part.append(item)
            ids += len(item)
        else:
            wrong.append((index, item))
        if not item and (isinstance(item, str | list)):
            blank.append(index)
        if ids > IDS_A_TURN:
            yield part
            part, ids = [], 0
    if wrong:
        raise InvalidInput(
            f"`{name}` must hold texts or lists of token ids; {name_inputs([index for index, _ in wrong])} "
            f"{'is' if len(wrong) == 1 else 'are not: the first is'} {kind_of(wrong[0][1])}"
        )
    if blank and not empty:
        where = "" if len(value) == 1 else f" ({name_inputs(blank)})"
        raise EmptyInput(f"`{name}` cannot be empty{where}")
    yield part


async def _read_bytes(request: Request) -> bytearray:
    """The whole body, or BodyTooLarge, RequestTimeout, Overloaded, or why it can't be read."""
    settings = embedder_of(request).settings
    limit_bytes = settings.max_body_bytes
    intake: Intake = request.app.state.intake
    refused = _why_unread(request, limit_bytes)
    if refused is not None and header_of(request, b"expect"):
        # It waits to be asked for its body, and is answered without.
        raise refused
    grace_s = BODY_GRACE_S if refused is None else REFUSED_GRACE_S
    # A bytearray grows in place; to join ten megabytes of chunks would hold the event loop for some milliseconds.
    body = bytearray()
    size = 0
    started = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(min(grace_s, settings.body_timeout_s)) as patience:
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise MalformedRequest("the connection closed before the body was complete")
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                # What is refused is received and dropped: a client that is still sending when the connection closes
                # sees a broken pipe in place of the answer that says why.
                if refused is None and size <= limit_bytes:
                    intake.take(request.scope, len(chunk))
                    body += chunk
                elif size > 8 * limit_bytes:
                    break
                if not message.get("more_body", False):
                    break
                patience.reschedule(started + min(grace_s + size / BODY_BYTES_PER_S, settings.body_timeout_s))
    except TimeoutError as error:
        if refused is not None or size > limit_bytes:
            raise refused or BodyTooLarge(limit_bytes) from error
        raise RequestTimeout(
            f"the body did not arrive in time: {size} bytes in {asyncio.get_running_loop().time() - started:.1f} s; "
            f"send it faster than {BODY_BYTES_PER_S} bytes/s and within {settings.body_timeout_s:g} s "
            "(ME5_BODY_TIMEOUT_S)"
        ) from error
    if refused is not None:
        raise refused
    if size > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    return body


def _why_unread(request: Request, limit_bytes: int) -> Me5Error | None:
    """What the headers alone say against a body."""
    encoding = (header_of(request, b"content-encoding") or "identity").lower()
    if encoding != "identity":
        return UnsupportedMediaType(f"a body with content-encoding {encoding[:40]!r} is not read; send plain JSON")
    declared = header_of(request, b"content-length") or ""
    return BodyTooLarge(limit_bytes) if declared.isdecimal() and int(declared) > limit_bytes else None


def _explain(error: ValidationError, shape: type[Body]) -> InvalidInput:
    items = error.errors(include_url=False, include_context=False)
    if not items[0]["loc"]:
        needed = [name for name, field in shape.model_fields.items() if field.is_required()]
        return InvalidInput(f"the body must be a JSON object{' with ' if needed else ''}{', '.join(needed)}")
    parts = []
    for item in items[:20]:
        field = ".".join(map(str, item["loc"]))
        given = "" if item["type"] == "missing" else f", given: {_shown(item['input'])}"
        parts.append(f"`{field}`: {item['msg'][:1].lower()}{item['msg'][1:]}{given}")
    return InvalidInput("; ".join(parts))


def _shown(value: object) -> str:
    """A wrong value, short; a large one is not written out for the sake of its first few signs."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return repr(str(value)[:80])


def _unknown_fields(body: Body) -> int:
    nested = (getattr(body, name) for name in type(body).model_fields)
    return len(body.model_extra or ()) + sum(_unknown_fields(part) for part in nested if isinstance(part, Body))


def _are_ids(values: list[object]) -> bool:
    """Whether all are whole numbers; booleans are none, though Python counts with them."""
    return set(map(type, values)) <= {int}
