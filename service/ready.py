"""An embedder that is ready, for commands: the settings' model, proved, without a server around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.embedder import Embedder
from service.metrics import Metrics
from service.settings import Settings


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Embedder]:
    """The settings' model, proved and ready, until the end of the block."""
    embedder = Embedder(settings, Metrics())
    try:
        await embedder.start()
        await embedder.wait_until_ready()
        yield embedder
    finally:
        await embedder.stop()
