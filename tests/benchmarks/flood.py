"""Clients that send more than a gateway can take, and what became of each request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp
import orjson

WORDS = "the harbour of Rotterdam lies where the Rhine meets the sea and ships from every port of the world call"
TIMEOUT_HEADER = "x-me5-timeout-ms"


@dataclass(frozen=True)
class Sent:
    """One request. at: when it was sent, on the monotonic clock.   retry_after_s: what a refusal said, else 0."""

    at: float
    latency_s: float
    status: int
    retry_after_s: int = 0

    @property
    def answered(self) -> float:
        """When its answer was there."""
        return self.at + self.latency_s


def bulk(passages: int, count: int = 64) -> list[bytes]:
    """Bodies of different requests with so many passages each."""
    draw = random.Random(passages)
    words = WORDS.split()
    return [
        orjson.dumps(
            {
                "inputs": [" ".join(draw.choices(words, k=draw.randint(20, 60))) for _ in range(passages)],
                "input_type": "passage",
            }
        )
        for _ in range(count)
    ]


class Flood:
    """Requests of one client (one API key), all of them kept in `sent`."""

    def __init__(
        self, session: aiohttp.ClientSession, bodies: Sequence[bytes], *, key: str = "", timeout_ms: int = 0
    ) -> None:
        self.sent: list[Sent] = []
        self._session = session
        self._bodies = bodies
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        if timeout_ms:
            self._headers[TIMEOUT_HEADER] = str(timeout_ms)

    async def send(self, body: bytes) -> Sent:
        """One request to its end."""
        at = time.monotonic()
        async with self._session.post("/embed", data=body, headers=self._headers) as response:
            await response.read()
            found = Sent(at, time.monotonic() - at, response.status, int(response.headers.get("retry-after", "0")))
        self.sent.append(found)
        return found

    async def closed_loop(self, clients: int, seconds: float) -> None:
        """So many connections, each sending again once it is answered; a refused one waits a moment."""
        until = time.monotonic() + seconds

        async def one(index: int) -> None:
            number = index
            while time.monotonic() < until:
                found = await self.send(self._bodies[number % len(self._bodies)])
                number += clients
                if found.status != 200:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*map(one, range(clients)))

    async def open_loop(
        self, rate: float, seconds: float, then: Callable[[bytes, Sent], Awaitable[None]] | None = None
    ) -> None:
        """Requests at random moments, `rate` a second on average, whether or not those before are answered.

        then: what a client does with its body once it has its answer.
        """
        draw = random.Random(0)
        due = time.monotonic()
        until = due + seconds
        under_way: set[asyncio.Task[None]] = set()

        async def one(body: bytes) -> None:
            found = await self.send(body)
            if then is not None:
                await then(body, found)

        number = 0
        while (due := due + draw.expovariate(rate)) < until:
            await asyncio.sleep(due - time.monotonic())
            task = asyncio.create_task(one(self._bodies[number % len(self._bodies)]))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number += 1
        await asyncio.sleep(until - time.monotonic())
        await asyncio.gather(*under_way)


def connect(url: str) -> aiohttp.ClientSession:
    """A session with as many connections as are asked for."""
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(300))
