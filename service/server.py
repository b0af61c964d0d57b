"""Run the app under uvicorn, and end it well: readiness red, accepted requests answered, exit 0."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn

from service.app import create_app
from service.embedder import Embedder
from service.engine import Engine
from service.errors import Me5Error, SettingsError
from service.settings import Settings

log = logging.getLogger("me5.server")

# For whoever supervises: the engine hung, and only a new process mends that. EX_TEMPFAIL of sysexits.h.
EXIT_ENGINE_HUNG = 75
# What the answers that tell of it get to leave the process.
HANG_GRACE_S = 1.0


class Server(uvicorn.Server):
    """uvicorn's server with a first, soft phase of ending.

    On SIGTERM /readyz turns red while the port stays open for drain_s, so that a load balancer looks away before
    connections are refused; then uvicorn stops to listen and waits for the requests it has, shutdown_s at most. A
    second signal, or SIGINT, skips the first phase; a second SIGINT also the wait.
    """

    def __init__(self, config: uvicorn.Config, embedder: Embedder) -> None:
        super().__init__(config)
        self._embedder = embedder
        self._drain_s = embedder.settings.drain_s
        self._shutdown_s = embedder.settings.shutdown_s
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """uvicorn's own keeps the signal and raises it again at the end, which would turn exit 0 into a kill."""
        soft = sig == signal.SIGTERM and not self._embedder.draining
        # Accepted requests are given up only for an impatient person, never for a supervisor that asks twice.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self._embedder.draining = True
        if soft:
            log.info("SIGTERM: draining for %g s", self._drain_s)
            # From a signal's handler the loop has to be woken, or a quiet server would sleep through it.
            self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_s, self._stop_listening)
        else:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own, with an answer for the requests that outlast it: cut off, their clients would see a reset."""
        self._loop.call_later(self._shutdown_s, self._embedder.refuse_all)
        await super().shutdown(sockets)

    def _stop_listening(self) -> None:
        self.should_exit = True


async def serve(settings: Settings, engine: Engine | None = None) -> None:
    """Open the model, prove it, listen, and return once the process was told to end. Raises StartupError.

    engine: an open engine, in place of the one the settings choose.
    """
    # Taken before the model is read: who else has the port is known at once, and nobody gets it meanwhile.
    listener = bind(settings.host, settings.port)
    app = create_app(settings, engine, on_hang=_end_process)
    embedder: Embedder = app.state.embedder
    try:
        await embedder.start()
    except Me5Error as error:
        await embedder.stop()
        if embedder.hung:
            log.critical(error.message)
            _exit(EXIT_ENGINE_HUNG)
        raise
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        # Behind our own end of patience, and time for its answers to leave.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_s) + 2,
        # Connections of a client that keeps them open outlive most of its pauses.
        timeout_keep_alive=75,
    )
    log.info("listening on http://%s:%d", *listener.getsockname()[:2])
    await Server(config, embedder).serve(sockets=[listener])
    if embedder.busy:
        # All requests are answered; a batch that nobody waits for can't be ended in an orderly way.
        _exit(EXIT_ENGINE_HUNG if embedder.hung else 0)


def bind(host: str, port: int) -> socket.socket:
    """A socket on this address that does not listen yet. Raises SettingsError where the address can't be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise SettingsError(
            f"can't listen on ME5_HOST={host}, ME5_PORT={port}: {error.strerror}; choose another, or stop what has it"
        ) from error
    return listener


def run(settings: Settings, engine: Engine | None = None) -> None:
    """serve, on uvloop where it is installed."""
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    loop_factory = uvicorn.Config(app="", loop="auto", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(settings, engine))


def _end_process() -> None:
    # Whatever else still runs: an engine that hangs may hold locks that an orderly end would wait for.
    asyncio.get_running_loop().call_later(HANG_GRACE_S, _exit, EXIT_ENGINE_HUNG)


def _exit(code: int) -> None:
    """End the process without waiting for any thread."""
    logging.shutdown()
    os._exit(code)
