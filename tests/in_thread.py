"""An EngineHost around an engine of this process, for tests that look into the engine while it computes."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.batching import Lane
from service.embedder import OpenHost
from service.engine import Engine, EngineConfig, EngineHost, Widths, vectors_of
from service.errors import EngineFailed, EngineLost
from service.recipe.tokens import pad

PAD_ID = 1


class InThread:
    """One batch a time and lane, each in a daemon thread: one that hangs can't keep the test from ending."""

    streams = 1
    remote = False

    def __init__(self, engine: Engine, dimension: int) -> None:
        self.name, self.precision, self.device = engine.name, engine.precision, engine.device
        self.gives_states = False
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._engine, self._dimension = engine, dimension

    async def run(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,  # noqa: ARG002
        unit: bool = True,
        wide: bool = False,  # noqa: ARG002
        deadline: float | None = None,  # noqa: ARG002
        traceparent: str | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[NDArray[np.float32]] = loop.create_future()

        def compute() -> None:
            batch = pad(rows, PAD_ID)
            try:
                vectors = vectors_of(self._engine.run(batch, unit=unit), batch, unit=unit)
                if vectors.shape != (len(rows), self._dimension):
                    raise ValueError(f"shape {vectors.shape}")
            except Exception as error:
                answer = functools.partial(settle, done, EngineFailed(repr(error)))
            else:
                answer = functools.partial(settle, done, vectors)
            if not loop.is_closed():
                loop.call_soon_threadsafe(answer)

        threading.Thread(target=compute, daemon=True).start()
        await asyncio.wait({done, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise EngineLost(self.lost.result())
        return done.result()

    def kill(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    async def close(self) -> None:
        self.kill("closed")


def settle(done: asyncio.Future[NDArray[np.float32]], found: NDArray[np.float32] | Exception) -> None:
    if done.done():
        return
    if isinstance(found, Exception):
        done.set_exception(found)
    else:
        done.set_result(found)


def in_thread(*engines: Engine) -> OpenHost:
    """Opens these engines one after another, and the last one again and again."""
    left = list(engines)

    async def open_host(_: EngineConfig, widths: Widths) -> EngineHost:
        return InThread(left.pop(0) if len(left) > 1 else left[0], widths.vector)

    return open_host
