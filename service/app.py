"""create_app: the routes, the one error handler, and what is measured around every request."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi_swagger import patch_fastapi
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.api.answering import ClientGone
from service.api.contracts import CONTRACTS, METHODS, POSTS, described, error_response
from service.api.cors import Cors
from service.api.guard import Guard, caller_of
from service.api.intake import Intake
from service.api.turns import Turns
from service.embedder import Embedder, OpenHost, open_process
from service.errors import InvalidInput, MalformedRequest, Me5Error, NotFound
from service.foreign_tokens import ForeignTokens
from service.gate import open_gate
from service.loop_lag import watch_lag
from service.metrics import ERROR_CODES, NO_LABEL, ROUTE_LABELS, ROUTES, Metrics
from service.settings import Settings, load_settings, origins_of

if TYPE_CHECKING:
    from service.tracing import RequestTrace, Tracing

log = logging.getLogger("me5.app")

# Random bytes for each request would cost a system call each.
_PROCESS_ID = uuid.uuid4().hex[:16].encode()
_NUMBERS = itertools.count(1)

# nginx's status for a client that closed the connection; it is never sent, only counted.
CLIENT_CLOSED = 499


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
    gate = open_gate(settings, embedder.metrics) if settings.needs_keys else None
    tracing = _open_tracing(settings, embedder)
    foreign_tokens = None if settings.openai_tokens is None else ForeignTokens(settings.openai_tokens)

    @asynccontextmanager
    async def lifespan(gateway: FastAPI) -> AsyncIterator[None]:
        await embedder.start()
        # Made now, where it isn't yet: it takes long enough for requests to notice.
        gateway.openapi()
        end_watch = watch_lag(embedder.metrics.event_loop_lag_s.observe)
        watching = None if gate is None else asyncio.create_task(gate.watch())
        yield
        if watching is not None:
            watching.cancel()
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
        # To an address made of whatever the Host header says, by http though the client may have come by https.
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url=None,
    )
    patch_fastapi(app, redirect_from_root_to_docs=False)
    app.state.embedder = embedder
    app.state.tracing = tracing
    app.state.foreign_tokens = foreign_tokens
    app.state.guard = None if gate is None else Guard(gate.callers, metrics_open=settings.metrics_open)
    app.state.turns = Turns()
    app.state.intake = Intake(settings.max_buffered_bytes, embedder.metrics)
    for module in CONTRACTS:
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
        """FastAPI's own, with the front outside of it, and what browsers are told outside of everything."""
        embedder: Embedder = self.state.embedder
        front = Front(
            super().build_middleware_stack(), embedder.metrics, self.state.intake, self.state.guard, self.state.tracing
        )
        return with_cors(front, embedder.settings)

    def openapi(self) -> dict[str, Any]:
        """FastAPI's own, made once, with whole examples; it says where requests need keys, and /docs asks for one."""
        if not self.openapi_schema:
            document = described(super().openapi())
            if self.state.guard is not None:
                bearer = {"key": {"type": "http", "scheme": "bearer"}}
                document.setdefault("components", {})["securitySchemes"] = bearer
                document["security"] = [{"key": []}]
        assert self.openapi_schema is not None
        return self.openapi_schema


def with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application as pages of other origins may ask it, where some may."""
    origins = origins_of(settings.cors_origins)
    return Cors(app, origins) if origins else app


class Front:
    """Around every request: whether it may ask, its id, its trace, its duration by route, role, lane and code, and a
    last net for faults.

    A POST goes straight to its function: routing, dependencies and serialisation of a framework cost more than all that
    an embedding request needs of them.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        intake: Intake,
        guard: Guard | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.intake = intake
        self.guard = guard
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = scope["me5_started"] = time.monotonic()
        request_id = scope["me5_id"] = _request_id(scope)
        status = 0
        endpoint = POSTS.get(scope["path"]) if scope["method"] == "POST" else None
        refused = None if self.guard is None else self.guard.refusal(scope)
        # Probes and scrapes would drown the rest; and who has no key must not fill the collector.
        traced = self.tracing is not None and endpoint is not None and refused is None
        trace = self._begin_trace(self.tracing, scope, request_id) if self.tracing is not None and traced else None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                caller = caller_of(scope)
                more = [] if caller is None else caller.headers(time.monotonic())
                message["headers"] = [*message["headers"], (b"x-request-id", request_id), *more]
            await send(message)

        try:
            if refused is not None:
                await error_response(scope["path"], refused)(scope, receive, send_with_id)
            elif endpoint is not None:
                response = await _answered(endpoint, Request(scope, receive, send_with_id))
                await response(scope, receive, send_with_id)
            elif scope["path"].endswith("\n"):
                # The `$` of the router's patterns matches before a line's end, too.
                await error_response(scope["path"], NotFound("no such route; see /docs"))(scope, receive, send_with_id)
            else:
                # What answers a GET answers a HEAD; the server leaves the body out.
                seen = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self.app(seen, receive, send_with_id)
        except Exception as error:
            known_as = "" if trace is None else f", trace {trace.trace_id}"
            log.exception("unhandled error, request %s%s", request_id.decode(), known_as)
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
        route = ROUTE_LABELS.get(scope["path"])
        if route not in ROUTES or scope["method"] != "POST":
            return
        role, lane = scope.get("me5", (NO_LABEL, NO_LABEL)) if status == 200 else (NO_LABEL, NO_LABEL)
        code = str(status) if status == 200 or str(status) in ERROR_CODES else "500"
        self.metrics.observe_request(route, role, lane, code, spent_s)


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
    if error.status_code == 405 and (allowed := METHODS.get(path)):
        # Starlette names those of the first route with this path alone.
        response.headers["allow"] = ", ".join(sorted({*allowed, "HEAD"} if "GET" in allowed else allowed))
    return response


async def _answer_client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


def refuse(error: Me5Error, settings: Settings) -> ASGIApp:
    """An application that answers every request with this error."""

    async def refused(scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(scope["path"], error)(scope, receive, send)

    return with_cors(refused, settings)


def _request_id(scope: Scope) -> bytes:
    """The client's own id where it is short and printable, else a new one: the process's own part and a number."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and 0 < len(value) <= 128 and all(33 <= byte < 127 for byte in value):
            given: bytes = value
            return given
    return b"%s-%x" % (_PROCESS_ID, next(_NUMBERS))
