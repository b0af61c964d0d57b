"""What every command has in common: errors in one line, and a model opened without a server around it."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ParamSpec

import typer

from service.errors import Me5Error

if TYPE_CHECKING:
    from service.embedder import Embedder
    from service.settings import Settings

P = ParamSpec("P")


def plain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """One line on stderr and exit code 2 for the errors that are ours; a traceback is for faults of the code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except Me5Error as error:
            print(f"me5: {error.message}", file=sys.stderr)
            raise typer.Exit(2) from error

    return wrapped


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Embedder]:
    """The settings' model, proved and ready, without a server around it."""
    from service.embedder import Embedder
    from service.metrics import Metrics

    embedder = Embedder(settings, Metrics())
    try:
        await embedder.start()
        await embedder.wait_until_ready()
        yield embedder
    finally:
        await embedder.stop()
