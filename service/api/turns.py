"""Long work on the event loop, in pieces of which one runs at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """Where the pieces of all requests' long work line up: `async with turns:` does one, and then lets the loop turn.

    A piece of JSON takes about a millisecond of C code that no other Python can interrupt, in whichever thread it runs.
    So it is cut small and stays on the loop; in a line, for ten large requests must not put ten pieces into one turn.
    """

    def __init__(self) -> None:
        self._line = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._line.acquire()

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self._line.release()

    async def collect(self, pieces: Iterator[T]) -> list[T]:
        """Every piece of an iterator, a turn for each."""
        found: list[T] = []
        while True:
            async with self:
                for piece in pieces:
                    found.append(piece)
                    break
                else:
                    return found
