"""Probes and metrics: /livez, /readyz, /health, /metrics. None of them waits for the engine."""

from __future__ import annotations

import asyncio
import math

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.api.answering import json_response
from service.api.reading import embedder_of
from service.api.schema import TEI_ERROR, errors_of
from service.engine_process import EngineProcess
from service.memory import memory_limit, resident_bytes

router = APIRouter()


@router.get("/livez", summary="Whether the process lives")
async def livez() -> Response:
    """200 as long as the event loop turns."""
    return json_response({"status": "alive"})


@router.get(
    "/readyz",
    responses={503: {"description": "Not ready; the reason is in the body."}},
    summary="Whether requests are answered",
)
async def readyz(request: Request) -> Response:
    """200, or 503 with the reason."""
    reason = embedder_of(request).not_ready()
    if reason is None:
        return json_response({"status": "ready"})
    return json_response({"status": "not ready", "reason": reason}, status=503)


@router.get("/health", responses=errors_of(TEI_ERROR, [503]), response_class=Response, summary="TEI's probe")
@router.get("/ping", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 and an empty body, or 503 as TEI words it."""
    if embedder_of(request).not_ready() is None:
        return Response()
    return json_response({"error": "unhealthy", "error_type": "Unhealthy"}, status=503)


@router.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
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
    return Response(generate_latest(embedder.metrics.registry), media_type=CONTENT_TYPE_LATEST)
