"""Every wire contract the gateway speaks: its routes, and whose errors a path answers with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.api import cohere, embed, embed_all, info, ollama, openai, ops, page, similarity, tokenize
from service.api.answering import json_response
from service.api.facade import Facade
from service.errors import HeadersTooLarge, Me5Error, RequestTimeout, TooManyConnections

CONTRACTS = (embed, embed_all, similarity, tokenize, info, openai, cohere, ollama, ops, page)

# The routes that take bodies: none has a parameter in its path, so a look into a dictionary replaces the router.
POSTS: dict[str, Callable[[Request], Awaitable[Response]]] = {}
METHODS: dict[str, set[str]] = {}
_FACADES: dict[str, Facade] = {}
for _module in CONTRACTS:
    for _route in _module.router.routes:
        assert isinstance(_route, APIRoute)
        METHODS.setdefault(_route.path, set()).update(_route.methods or ())
        _FACADES[_route.path] = _module.FACADE
        if _route.methods == {"POST"}:
            POSTS[_route.path] = _route.endpoint
_BY_PREFIX = sorted(
    {module.FACADE.prefix: module.FACADE for module in CONTRACTS}.items(), key=lambda item: -len(item[0])
)


def described(document: dict[str, Any]) -> dict[str, Any]:
    """The API's description with the answers as the routes have them.

    FastAPI leaves nulls out of examples, and adds a 422 of its own to whatever has a parameter.
    """
    for module in CONTRACTS:
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            if not route.include_in_schema:
                continue
            for method in route.methods or ():
                responses = document["paths"][route.path_format][method.lower()]["responses"]
                if 422 not in route.responses:
                    responses.pop("422", None)
                for status, response in route.responses.items():
                    for media_type, content in response.get("content", {}).items():
                        if "example" in content:
                            responses[str(status)]["content"][media_type]["example"] = content["example"]
    return document


def facade_of(path: str) -> Facade:
    """The contract of a path: of the route that has it, else of the longest prefix."""
    found = _FACADES.get(path)
    if found is None:
        found = next((facade for prefix, facade in _BY_PREFIX if path.startswith(prefix)), _BY_PREFIX[-1][1])
    return found


def error_response(path: str, error: Me5Error, status: int | None = None) -> Response:
    """The contract decides the body's shape, never the status."""
    status = status or error.status
    headers = [*error.headers]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, RequestTimeout | HeadersTooLarge | TooManyConnections):
        # The rest may come in drops, or never.
        headers.append((b"connection", b"close"))
    return json_response(facade_of(path).error_body(error, status), headers, status)
