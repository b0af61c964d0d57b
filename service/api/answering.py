"""From the embedder's answer to an HTTP response; and the wait for it, given up when the client goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.encoding import CHARS_A_SLICE, NUMBERS_A_SLICE
from service.api.reading import BODY_BYTES_PER_S, BODY_GRACE_S, embedder_of, header_of, turns_of
from service.api.turns import Turns
from service.asking import Answer, Ask, role_label
from service.errors import InvalidInput, ranges

TIMEOUT_HEADER = "x-me5-timeout-ms"
LANE_HEADER = "x-me5-lane"

HEADER_CHARS_MAX = 1000

# Where a request's scope has what cuts its connection, told the reason.
CUT = "me5_cut"
# How fast a streamed answer has to be taken, on the whole; as fast as a body has to come.
SEND_GRACE_S = BODY_GRACE_S
SEND_BYTES_PER_S = BODY_BYTES_PER_S

log = logging.getLogger("me5.answering")

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection; nobody reads the answer."""


class Parts(Response):
    """A response whose body is sent part by part, with headers that are bytes already."""

    def __init__(self, parts: Sequence[bytes | memoryview], headers: Headers, content_type: bytes) -> None:
        self.status_code = 200
        self.background = None
        self.parts = parts
        length = sum(map(len, parts))
        self.raw_headers = [*headers, (b"content-length", b"%d" % length), (b"content-type", content_type)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = len(self.parts) - 1
        for number, part in enumerate(self.parts):
            await send({"type": "http.response.body", "body": part, "more_body": number < last})


class Streamed(Response):
    """A JSON response of which no more is there at a time than the piece that is being sent.

    What it is made of is held until its last byte is taken, so a client that reads slower than SEND_BYTES_PER_S after
    a grace is cut, and nothing more is written for one that has gone.
    """

    def __init__(
        self, turns: Turns, parts: Iterator[bytes], headers: Headers, *, grace_s: float = SEND_GRACE_S
    ) -> None:
        self.status_code = 200
        self.background = None
        self.turns = turns
        self.parts = parts
        self.grace_s = grace_s
        self.raw_headers = [*headers, (b"content-type", b"application/json")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(Request(scope, receive), self._send(send))
        except ClientGone:
            return
        except TimeoutError:
            log.info("an answer was read slower than %d bytes/s; its connection is cut", SEND_BYTES_PER_S)
            scope[CUT]("not_reading")

    async def _send(self, send: Send) -> None:
        """Every part. Raises TimeoutError where the client takes too long."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        part: bytes | None = b""
        # Time that the client takes; to wait for a turn is ours.
        patience_s = self.grace_s
        while part is not None:
            async with self.turns:
                part = next(self.parts, None)
            started = time.monotonic()
            async with asyncio.timeout(patience_s):
                await send({"type": "http.response.body", "body": part or b"", "more_body": part is not None})
            patience_s += len(part or b"") / SEND_BYTES_PER_S - (time.monotonic() - started)


async def answer(request: Request, ask: Ask) -> Answer:
    """Embed, count what was done, and leave role and lane where the request's metrics find them."""
    embedder = embedder_of(request)
    found = await until_disconnect(request, embedder.embed(ask))
    label = role_label(found.roles)
    request.scope["me5"] = (label, found.lane)
    for role in set(found.roles):
        rows = [index for index, given in enumerate(found.roles) if given == role]
        cut = sum(found.roles[index] == role for index in found.truncated)
        embedder.metrics.count_inputs(role, len(rows), sum(found.tokens[index] for index in rows), cut)
    if ask.caller is not None:
        ask.caller.metrics.tokens.inc(sum(found.tokens))
    return found


async def until_disconnect(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of work, which is cancelled when the client goes: its texts then leave the queue."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        # The body is read to its end by now: the next message can only be the disconnect.
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        # Ours if the client went and nobody else wants this task to end.
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


def headers_of(request: Request, found: Answer) -> Headers:
    """TEI's timing headers (milliseconds), and what this server adds: role, lane, and which inputs were cut."""
    engine = embedder_of(request).engine
    total_ms = _ms(time.monotonic() - request.scope["me5_started"])
    headers = [
        (b"x-compute-type", f"{engine.device}+{engine.name}-{engine.precision}".encode("latin-1") if engine else b""),
        (b"x-compute-time", total_ms),
        (b"x-total-time", total_ms),
        (b"x-compute-characters", b"%d" % found.characters),
        (b"x-compute-tokens", b"%d" % sum(found.tokens)),
        (b"x-tokenization-time", _ms(found.tokenize_s)),
        (b"x-queue-time", _ms(found.queue_s)),
        (b"x-inference-time", _ms(found.engine_s)),
        (b"x-me5-role", role_label(found.roles).encode("ascii")),
        (b"x-me5-lane", found.lane.encode("ascii")),
        (b"x-me5-truncated", b"%d" % len(found.truncated)),
    ]
    if found.truncated:
        headers.append((b"x-me5-truncated-inputs", _header_list(ranges(found.truncated)).encode("ascii")))
    return headers


async def respond(
    request: Request,
    found: Answer,
    parts: Iterator[bytes | memoryview] | Iterator[bytes],
    content_type: bytes = b"application/json",
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> Response:
    """The parts of an answer, each written in a turn of its own where there are many."""
    large = found.vectors.size > NUMBERS_A_SLICE or found.characters > CHARS_A_SLICE
    body: Sequence[bytes | memoryview] = await turns_of(request).collect(parts) if large else [b"".join(parts)]
    return Parts(body, [*headers_of(request, found), *extra], content_type)


def json_response(content: object, headers: Headers | None = None, status: int = 200) -> Response:
    """JSON by orjson: NumPy arrays are written straight from their memory."""
    response = Parts([orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)], headers or [], b"application/json")
    response.status_code = status
    return response


def timeout_s_of(request: Request) -> float | None:
    """The deadline a client asked for by header, in seconds."""
    given = header_of(request, TIMEOUT_HEADER.encode("ascii"))
    if given is None:
        return None
    try:
        timeout_ms = float(given)
    except ValueError:
        timeout_ms = -1.0
    if not 1 <= timeout_ms <= 86_400_000:
        raise InvalidInput(f"{TIMEOUT_HEADER} is {given[:40]!r}; give milliseconds, 1 to 86400000")
    return timeout_ms / 1000


def _header_list(text: str) -> str:
    """A comma-separated list short enough for a header; "..." says that it goes on (proxies refuse long ones)."""
    if len(text) <= HEADER_CHARS_MAX:
        return text
    return text[:HEADER_CHARS_MAX].rpartition(",")[0] + ",..."


def _ms(seconds: float) -> bytes:
    return b"%d" % round(seconds * 1000)
