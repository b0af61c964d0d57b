"""From the embedder's answer to an HTTP response; and the wait for it, given up when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from service.api.reading import embedder_of
from service.embedder import Answer, Ask, role_label
from service.errors import InvalidInput, ranges

TIMEOUT_HEADER = "x-me5-timeout-ms"
LANE_HEADER = "x-me5-lane"

HEADER_CHARS_MAX = 1000

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection; nobody reads the answer."""


async def answer(request: Request, ask: Ask) -> Answer:
    """Embed, count what was done, and leave role and lane where the request's metrics find them."""
    embedder = embedder_of(request)
    found = await until_disconnect(request, embedder.embed(ask))
    request.scope["me5"] = (role_label(found.roles), found.lane)
    metrics = embedder.metrics
    for role in set(found.roles):
        rows = [index for index, given in enumerate(found.roles) if given == role]
        metrics.inputs.labels(role).inc(len(rows))
        metrics.tokens.labels(role).inc(sum(found.tokens[index] for index in rows))
    for index in found.truncated:
        metrics.truncated_inputs.labels(found.roles[index]).inc()
    return found


async def until_disconnect(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of work, which is cancelled when the client goes: its texts then leave the queue."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for waiting in (task, gone):
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting


def headers_of(request: Request, found: Answer) -> dict[str, str]:
    """TEI's timing headers (milliseconds), and what this server adds: role, lane, and which inputs were cut."""
    engine = embedder_of(request).engine
    total_ms = _ms(time.monotonic() - request.scope["me5_started"])
    headers = {
        "x-compute-type": f"{engine.device}+{engine.name}-{engine.precision}" if engine else "",
        "x-compute-time": total_ms,
        "x-total-time": total_ms,
        "x-compute-characters": str(found.characters),
        "x-compute-tokens": str(sum(found.tokens)),
        "x-tokenization-time": _ms(found.tokenize_s),
        "x-queue-time": _ms(found.queue_s),
        "x-inference-time": _ms(found.engine_s),
        "x-me5-role": role_label(found.roles),
        "x-me5-lane": found.lane,
        "x-me5-truncated": str(len(found.truncated)),
    }
    if found.truncated:
        headers["x-me5-truncated-inputs"] = _header_list(ranges(found.truncated))
    return headers


def json_response(content: object, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """JSON by orjson: NumPy arrays are written straight from their memory."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def rows_of(vectors: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The rows of [N, D], each contiguous, as orjson needs them."""
    return list(np.ascontiguousarray(vectors))


def timeout_s_of(request: Request) -> float | None:
    """The deadline a client asked for by header, in seconds."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        timeout_ms = float(given)
    except ValueError:
        timeout_ms = -1.0
    if not 1 <= timeout_ms <= 86_400_000:
        raise InvalidInput(f"{TIMEOUT_HEADER} is {given[:40]!r}; give milliseconds, 1 to 86400000")
    return timeout_ms / 1000


async def _disconnected(request: Request) -> None:
    # The body is read to its end by now: the next message can only be the disconnect.
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _header_list(text: str) -> str:
    """A comma-separated list short enough for a header; "..." says that it goes on (proxies refuse long ones)."""
    if len(text) <= HEADER_CHARS_MAX:
        return text
    return text[:HEADER_CHARS_MAX].rpartition(",")[0] + ",..."


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
