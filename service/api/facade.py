"""What a wire contract fixes beyond its routes: the shape of its errors, and their OpenAPI description."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineFailed,
    EngineLost,
    Forbidden,
    HeadersTooLarge,
    InvalidInput,
    MalformedRequest,
    Me5Error,
    NotFound,
    Overloaded,
    RequestTimeout,
    Unauthorized,
    UnsupportedMediaType,
)

JSON = "application/json"

# What every route that takes a body may answer beside 200, in its contract's own shape of errors.
ERRORS = {
    400: "The body is not JSON, or an input is empty.",
    401: "No API key, or one that is not valid; only where the server was given keys.",
    403: "The API key may not do this.",
    408: "The body did not arrive in time.",
    413: "The body is larger than ME5_MAX_BODY_BYTES, or has more tokens than the API key may use at once; with "
    "ME5_TOO_LONG_STATUS=413 also a text that is too long.",
    415: "The body is compressed.",
    422: "A value is outside its limits; the message names the value, the limit and the remedy.",
    429: "Too much is waiting, or the API key's tokens are used up; Retry-After says when there will be room.",
    431: "The headers are too large.",
    500: "The engine failed on this request.",
    503: "No engine, too many connections, or the process is ending.",
    504: "The request's time is up.",
}
_MEANINGS = {**ERRORS, 404: "No such model."}


# An error for each status, as it may be met, for the examples.
_SAMPLES: dict[int, Me5Error] = {
    400: MalformedRequest("the body is not JSON: expected value at line 1 column 2"),
    401: Unauthorized("no API key; send `Authorization: Bearer KEY`, or x-api-key: KEY", given=False),
    403: Forbidden("key indexer may only use lane bulk, not interactive; leave x-me5-lane out"),
    404: NotFound("no model 'gpt-4'; this server has me5_nano, me5_nano-query and me5_nano-passage"),
    408: RequestTimeout("the body did not arrive in time: 12 bytes in 5.0 s; send it faster than 65536 bytes/s"),
    413: BodyTooLarge(10485760),
    415: UnsupportedMediaType("a body with content-encoding 'gzip' is not read; send plain JSON"),
    422: InvalidInput("`dimensions` is 9999, this model has 1 to 768"),
    429: Overloaded("Model is overloaded: 200000 tokens are queued; try again in 3 s", retry_after_s=3),
    431: HeadersTooLarge("the headers are larger than 65536 bytes"),
    500: EngineFailed("the engine failed on this request's batch: the server's log says how"),
    503: EngineLost("the engine was lost and is started again; send the request again"),
    504: DeadlineExceeded(waiting=3, total=8),
}


@dataclass(frozen=True)
class Facade:
    """A wire contract.

    prefix: of paths that are its own even where no route has them.   error_body: an error and its status to what is
    written; the status itself is the same on every contract.   error_schema: the same for OpenAPI.
    """

    prefix: str
    error_body: Callable[[Me5Error, int], dict[str, object]]
    error_schema: Mapping[str, object]

    def errors(self, statuses: Iterable[int] = ERRORS) -> dict[int | str, dict[str, object]]:
        """A route's `responses` for these statuses."""
        return {
            status: {
                "description": _MEANINGS[status],
                "content": {JSON: {"schema": self.error_schema, "example": self.error_body(_SAMPLES[status], status)}},
            }
            for status in statuses
        }

    def responses(
        self,
        description: str,
        schema: Mapping[str, object],
        example: object,
        *,
        errors: Iterable[int] = ERRORS,
        headers: Mapping[str, object] | None = None,
        binary: Mapping[str, object] | None = None,
    ) -> dict[int | str, dict[str, object]]:
        """A route's `responses`: of a 200 in JSON, and in `binary` media types, and of these errors."""
        good: dict[str, object] = {
            "description": description,
            "content": {JSON: {"schema": schema, "example": example}, **(binary or {})},
        }
        if headers:
            good["headers"] = headers
        return {200: good, **self.errors(errors)}


def array_of(items: Mapping[str, object]) -> dict[str, object]:
    """The schema of a list."""
    return {"type": "array", "items": items}


def object_of(**fields: Mapping[str, object]) -> dict[str, object]:
    """The schema of an object that has all of these fields."""
    return {"type": "object", "required": list(fields), "properties": fields}


TEXT: dict[str, object] = {"type": "string"}
INTEGER: dict[str, object] = {"type": "integer"}
NUMBERS = array_of({"type": "number"})
