"""Probes and metrics: /livez, /readyz, /health, /metrics. None of them waits for the engine."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from service.api.answering import json_response
from service.api.reading import embedder_of

router = APIRouter()


@router.get("/livez", summary="Whether the process lives")
async def livez() -> Response:
    """200 as long as the event loop turns."""
    return json_response({"status": "alive"})


@router.get("/readyz", summary="Whether requests are answered")
async def readyz(request: Request) -> Response:
    """200, or 503 with the reason."""
    reason = embedder_of(request).not_ready()
    if reason is None:
        return json_response({"status": "ready"})
    return json_response({"status": "not ready", "reason": reason}, status=503)


@router.get("/health", summary="TEI's probe")
@router.get("/ping", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 and an empty body, or 503 as TEI words it."""
    if embedder_of(request).not_ready() is None:
        return Response()
    return json_response({"error": "unhealthy", "error_type": "Unhealthy"}, status=503)


@router.get("/metrics", summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """The text format of Prometheus."""
    embedder = embedder_of(request)
    embedder.metrics.ready.set(embedder.not_ready() is None)
    return Response(generate_latest(embedder.metrics.registry), media_type=CONTENT_TYPE_LATEST)
