"""A server that does nothing: it reads the body and answers one constant vector. What a request costs without a model.

    python tests/benchmarks/echo_server.py DIMENSION PORT

`POST /embed?delay_ms=D` answers after D milliseconds, so that a closed loop of N clients sends N / D requests a
millisecond: the rate and the concurrency that the gateway had. Measured against it is the load generator, not the
server.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import orjson
import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def create_app(dimension: int) -> Callable[[dict[str, Any], Receive, Send], Awaitable[None]]:
    """An ASGI application. The vector's numbers have as many digits as a real one's, so the answer has its size."""
    answer = orjson.dumps([[round(math.sin(index + 1) / 20, 9) for index in range(dimension)]])
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())],
    }

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body", False):
            pass
        delay_ms = float(parse_qs(scope["query_string"].decode()).get("delay_ms", ["0"])[0])
        if delay_ms > 0:
            await asyncio.sleep(delay_ms / 1e3)
        await send(start)
        await send({"type": "http.response.body", "body": answer})

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(int(sys.argv[1])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
