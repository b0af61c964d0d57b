"""A request's headers, looked up once."""

from __future__ import annotations

from starlette.types import Scope

_HEADERS = "me5_headers"


def headers_in(scope: Scope) -> dict[bytes, bytes]:
    """Headers by lower-case name; of one given twice, the first."""
    found: dict[bytes, bytes] | None = scope.get(_HEADERS)
    if found is None:
        # Once a request: each look into the list of headers would walk and decode it.
        found = scope[_HEADERS] = dict(reversed(scope["headers"]))
    return found
