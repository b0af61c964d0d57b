"""create_app: the routes, the one error handler, and what is measured around every request."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_swagger import patch_fastapi
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.api import embed, openai, ops, page, tokenize
from service.api.answering import ClientGone, json_response
from service.api.intake import Intake
from service.api.turns import Turns
from service.embedder import Embedder, OpenHost, open_process
from service.errors import (
    HeadersTooLarge,
    InvalidInput,
    MalformedRequest,
    Me5Error,
    NotFound,
    RequestTimeout,
    TooManyConnections,
)
from service.loop_lag import watch_lag
from service.metrics import ERROR_CODES, NO_LABEL, ROUTES, Metrics
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from service.tracing import RequestTrace, Tracing

log = logging.getLogger("me5.app")

# Random bytes for each request would cost a system call each.
_PROCESS_ID = uuid.uuid4().hex[:16].encode()
_NUMBERS = itertools.count(1)

# nginx's status for a client that closed the connection; it is never sent, only counted.
CLIENT_CLOSED = 499

# TEI's names on the wire. Its 424 for a failed engine is not copied: the fault is the server's own.
_TEI_TYPES = {
    "empty": "Empty",
    "overloaded": "Overloaded",
    "engine_failed": "Backend",
    "tokenizer_failed": "Backend",
    "engine_lost": "Unhealthy",
    "upstream_failed": "Unhealthy",
    "too_many_connections": "Overloaded",
    "shutting_down": "Unhealthy",
    "deadline": "Overloaded",
    "internal": "Backend",
}


def create_app(
    settings: Settings | None = None,
    *,
    open_host: OpenHost = open_process,
) -> FastAPI:
    """The gateway as an ASGI application. Raises StartupError for a bad setting or model file.

    open_host: opens engines elsewhere than in a process of their own.
    """
    settings = settings or load_settings()
    embedder = Embedder(settings, Metrics(), open_host=open_host)
    tracing = _open_tracing(settings, embedder)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await embedder.start()
        end_watch = watch_lag(embedder.metrics.event_loop_lag_s.observe)
        yield
        end_watch()
        await embedder.stop()
        if tracing is not None:
            await tracing.close()

    app = Gateway(
        title="me5",
        version=__version__,
        description="Multilingual E5 text embeddings: text in about a hundred languages to unit vectors.",
        lifespan=lifespan,
        # FastAPI's own pages fetch their scripts from a CDN; these come with a package and work without a network.
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    patch_fastapi(app, redirect_from_root_to_docs=False)
    app.state.embedder = embedder
    app.state.tracing = tracing
    app.state.turns = Turns()
    app.state.intake = Intake(settings.max_buffered_bytes, embedder.metrics)
    for module in (embed, tokenize, openai, ops, page):
        app.include_router(module.router)
    app.add_exception_handler(Me5Error, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientGone, _answer_client_gone)
    return app


def _open_tracing(settings: Settings, embedder: Embedder) -> Tracing | None:
    """Tracing where it is wanted; without it, none of OpenTelemetry's exporter is imported."""
    if not settings.otlp_endpoint:
        return None
    from service.tracing import Tracing

    model = embedder.model
    tracing = Tracing(
        settings.otlp_endpoint, settings.trace_sample_ratio, model=model.spec.name, model_version=model.version
    )
    embedder.trace_with(tracing)
    return tracing


class Gateway(FastAPI):
    """FastAPI for the routes and their description, behind a front that every request passes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's own: FastAPI's looks for a tracer to tell at every request."""
        await Starlette.__call__(self, scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's own, with the front outside of everything."""
        embedder: Embedder = self.state.embedder
        return Front(super().build_middleware_stack(), embedder.metrics, self.state.intake, self.state.tracing)


# The routes that take bodies: none has a parameter in its path, so a look into a dictionary replaces the router.
_POSTS: dict[str, Callable[[Request], Awaitable[Response]]] = {
    route.path: route.endpoint
    for module in (embed, tokenize, openai)
    for route in module.router.routes
    if isinstance(route, APIRoute) and route.methods == {"POST"}
}
_METHODS: dict[str, set[str]] = {}
for _module in (embed, tokenize, openai, ops, page):
    for _route in _module.router.routes:
        if isinstance(_route, APIRoute):
            _METHODS.setdefault(_route.path, set()).update(_route.methods or ())


class Front:
    """Around every request: its id, its trace, its duration by route, role, lane and code, and a last net for faults.

    A POST goes straight to its function: routing, dependencies and serialisation of a framework cost more than all that
    an embedding request needs of them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, intake: Intake, tracing: Tracing | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.intake = intake
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = scope["me5_started"] = time.monotonic()
        request_id = _request_id(scope)
        status = 0
        endpoint = _POSTS.get(scope["path"]) if scope["method"] == "POST" else None
        # Probes and scrapes would drown the rest.
        trace = None if self.tracing is None or endpoint is None else self._begin_trace(self.tracing, scope, request_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            if endpoint is None:
                await self.app(scope, receive, send_with_id)
            else:
                response = await _answered(endpoint, Request(scope, receive, send_with_id))
                await response(scope, receive, send_with_id)
        except Exception as error:
            traced = "" if trace is None else f", trace {trace.trace_id}"
            log.exception("unhandled error, request %s%s", request_id.decode(), traced)
            if trace is not None:
                trace.failed(error)
            if status == 0:
                response = error_response(scope["path"], Me5Error("internal error; the server's log has the details"))
                await response(scope, receive, send_with_id)
        finally:
            self.intake.release(scope)
            ended = time.monotonic()
            self._observe(scope, status, ended - started)
            if trace is not None:
                trace.end(status, ended)

    def _begin_trace(self, tracing: Tracing, scope: Scope, request_id: bytes) -> RequestTrace | None:
        client = scope.get("client")
        trace = scope["me5_trace"] = tracing.begin(
            scope["path"],
            scope["headers"],
            scope["me5_started"],
            scheme=scope.get("scheme", "http"),
            client=client[0] if client else None,
            request_id=request_id.decode("ascii"),
        )
        return trace

    def _observe(self, scope: Scope, status: int, spent_s: float) -> None:
        if scope["path"] not in ROUTES or scope["method"] != "POST":
            return
        role, lane = scope.get("me5", (NO_LABEL, NO_LABEL)) if status == 200 else (NO_LABEL, NO_LABEL)
        code = str(status) if status == 200 or str(status) in ERROR_CODES else "500"
        self.metrics.observe_request(scope["path"], role, lane, code, spent_s)


async def _answered(endpoint: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    """What the exception handlers do for the routes that FastAPI calls."""
    try:
        return await endpoint(request)
    except Me5Error as error:
        trace: RequestTrace | None = request.scope.get("me5_trace")
        if trace is not None:
            trace.failed(error)
        return error_response(request.scope["path"], error)
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, Me5Error)
    return error_response(request.scope["path"], error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.scope["path"], request.scope["method"]
    found: Me5Error
    if error.status_code == 404:
        found = NotFound(f"no route {path[:80]}; see /docs")
    elif error.status_code == 405:
        found = InvalidInput(f"{method} is not allowed on {path[:80]}; see /docs")
    else:
        found = MalformedRequest(str(error.detail))
    response = error_response(path, found, status=error.status_code)
    response.headers.update(error.headers or {})
    if error.status_code == 405 and (allowed := _METHODS.get(path)):
        # Starlette names those of the first route with this path alone.
        response.headers["allow"] = ", ".join(sorted(allowed))
    return response


async def _answer_client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


def refuse(error: Me5Error) -> ASGIApp:
    """An application that answers every request with this error."""

    async def refused(scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(scope["path"], error)(scope, receive, send)

    return refused


def error_response(path: str, error: Me5Error, status: int | None = None) -> Response:
    """The façade decides the body's shape, never the status."""
    status = status or error.status
    headers = [] if error.retry_after_s is None else [(b"retry-after", b"%d" % error.retry_after_s)]
    if isinstance(error, RequestTimeout | HeadersTooLarge | TooManyConnections):
        # The rest may come in drops, or never.
        headers.append((b"connection", b"close"))
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
        content: dict[str, object] = {
            "error": {"message": error.message, "type": kind, "param": None, "code": error.code}
        }
    else:
        validation = error.status in (400, 422)
        message = f"Input validation error: {error.message}" if validation else error.message
        content = {"error": message, "error_type": _TEI_TYPES.get(error.code, "Validation")}
    return json_response(content, headers, status)


def _request_id(scope: Scope) -> bytes:
    """The client's own id where it is short and printable, else a new one: the process's own part and a number."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and 0 < len(value) <= 128 and all(33 <= byte < 127 for byte in value):
            given: bytes = value
            return given
    return b"%s-%x" % (_PROCESS_ID, next(_NUMBERS))
