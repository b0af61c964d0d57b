"""Probes and metrics: /livez, /readyz, /health, /metrics. None of them waits for the engine."""

from __future__ import annotations

import asyncio
import math

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.api.answering import json_response
from service.api.facade import JSON, TEXT, object_of
from service.api.reading import embedder_of
from service.api.tei import TEI
from service.engine_process import EngineProcess
from service.memory import memory_limit, resident_bytes

FACADE = TEI
router = APIRouter()


@router.get(
    "/livez",
    responses=TEI.responses("It lives.", object_of(status=TEXT), {"status": "alive"}, errors=()),
    summary="Whether the process lives",
)
async def livez() -> Response:
    """200 as long as the event loop turns."""
    return json_response({"status": "alive"})


@router.get(
    "/readyz",
    responses={
        **TEI.responses("Ready.", object_of(status=TEXT), {"status": "ready"}, errors=()),
        503: {
            "description": "Not ready; the reason is in the body.",
            "content": {
                JSON: {
                    "schema": object_of(status=TEXT, reason=TEXT),
                    "example": {"status": "not ready", "reason": "engine reopening"},
                }
            },
        },
    },
    summary="Whether requests are answered",
)
async def readyz(request: Request) -> Response:
    """200, or 503 with the reason."""
    reason = embedder_of(request).not_ready()
    if reason is None:
        return json_response({"status": "ready"})
    return json_response({"status": "not ready", "reason": reason}, status=503)


@router.get("/health", responses=TEI.errors([503]), response_class=Response, summary="TEI's probe")
@router.get("/ping", responses=TEI.errors([503]), response_class=Response, summary="The same as /health, for SageMaker")
async def health(request: Request) -> Response:
    """200 and an empty body, or 503 as TEI words it."""
    if embedder_of(request).not_ready() is None:
        return Response()
    return json_response({"error": "unhealthy", "error_type": "Unhealthy"}, status=503)


@router.get("/metrics", responses=TEI.errors([401]), response_class=PlainTextResponse, summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """The text format of Prometheus."""
    embedder = embedder_of(request)
    embedder.metrics.ready.set(embedder.not_ready() is None)
    embedder.metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
    engine = embedder.engine
    engine_bytes = resident_bytes(engine.pid) if isinstance(engine, EngineProcess) else 0
    embedder.metrics.memory_bytes.set(resident_bytes() + engine_bytes)
    # Read again each time: a limit can be changed while the process runs.
    embedder.metrics.memory_limit_bytes.set(memory_limit() or math.inf)
    # In a thread: with a thousand keys it takes a tenth of a second.
    text = await asyncio.to_thread(generate_latest, embedder.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
