"""What a wire contract fixes beyond its routes: the shape of its errors, and their OpenAPI description."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydantic import JsonValue

from service.errors import Me5Error

# What every route that takes a body may answer beside 200, in its contract's own shape of errors.
ERRORS = {
    400: "The body is not JSON, or an input is empty.",
    408: "The body did not arrive in time.",
    413: "The body is larger than ME5_MAX_BODY_BYTES; with ME5_TOO_LONG_STATUS=413 also a text that is too long.",
    415: "The body is compressed.",
    422: "A value is outside its limits; the message names the value, the limit and the remedy.",
    429: "Too much is waiting; Retry-After says when there will be room.",
    431: "The headers are too large.",
    500: "The engine failed on this request.",
    503: "No engine, too many connections, or the process is ending.",
    504: "The request's time is up.",
}
_MEANINGS = {**ERRORS, 404: "No such model."}


@dataclass(frozen=True)
class Facade:
    """A wire contract.

    prefix: of paths that are its own even where no route has them.   error_body: an error and its status to what is
    written; the status itself is the same on every contract.   error_schema, error_example: the same for OpenAPI.
    """

    prefix: str
    error_body: Callable[[Me5Error, int], dict[str, object]]
    error_schema: dict[str, JsonValue]

    def responses(self, statuses: Iterable[int] = ERRORS) -> dict[int | str, dict[str, object]]:
        """A route's `responses` for these statuses."""
        return {
            status: {
                "description": _MEANINGS[status],
                "content": {"application/json": {"schema": self.error_schema}},
            }
            for status in statuses
        }


def text_field(name: str) -> dict[str, JsonValue]:
    """The schema of an error that is one sentence under this name."""
    return {"type": "object", "required": [name], "properties": {name: {"type": "string"}}}
