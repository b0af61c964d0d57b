"""Run the app under uvicorn, and end it well: readiness red, accepted requests answered, exit 0."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from types import FrameType

import uvicorn

from service.app import create_app
from service.embedder import Embedder
from service.settings import Settings

log = logging.getLogger("me5.server")

# For whoever supervises: the engine hung, and only a new process mends that. EX_TEMPFAIL of sysexits.h.
EXIT_ENGINE_HUNG = 75
# What the answers that tell of it get to leave the process.
HANG_GRACE_S = 1.0


class Server(uvicorn.Server):
    """uvicorn's server with a first, soft phase of ending.

    On SIGTERM /readyz turns red while the port stays open for drain_s, so that a load balancer looks away before
    connections are refused; then uvicorn stops to listen and waits for the requests it has. A second signal, or
    SIGINT, skips the first phase.
    """

    def __init__(self, config: uvicorn.Config, embedder: Embedder, drain_s: float) -> None:
        super().__init__(config)
        self._embedder = embedder
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """uvicorn's own keeps the signal and raises it again at the end, which would turn exit 0 into a kill."""
        soft = sig == signal.SIGTERM and not self._embedder.draining
        self.force_exit = self.should_exit
        self._embedder.draining = True
        if soft:
            log.info("SIGTERM: draining for %g s", self._drain_s)
            # From a signal's handler the loop has to be woken, or a quiet server would sleep through it.
            self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_s, self._stop_listening)
        else:
            self.should_exit = True

    def _stop_listening(self) -> None:
        self.should_exit = True


async def serve(settings: Settings) -> None:
    """Open the model, prove it, listen, and return once the process was told to end. Raises StartupError."""
    app = create_app(settings, on_hang=_end_process)
    embedder: Embedder = app.state.embedder
    await embedder.start()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(settings.shutdown_s),
        # Connections of a client that keeps them open outlive most of its pauses.
        timeout_keep_alive=75,
    )
    await Server(config, embedder, settings.drain_s).serve()


def run(settings: Settings) -> None:
    """serve, on uvloop where it is installed."""
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    loop_factory = uvicorn.Config(app="", loop="auto", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(settings))


def _end_process() -> None:
    # A thread that hangs in the engine can't be ended; sys.exit would wait for it for ever.
    asyncio.get_running_loop().call_later(HANG_GRACE_S, os._exit, EXIT_ENGINE_HUNG)
