"""Run the app under uvicorn, and end it well: readiness red, accepted requests answered, exit 0."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import resource
import signal
import socket
import sys
from types import FrameType

import uvicorn

from service.app import create_app, refuse
from service.embedder import Embedder, OpenHost, open_process
from service.errors import Me5Error
from service.garbage import collect_now_and_then
from service.http_protocol import SPARE_CONNECTIONS, HttpProtocol, Limits
from service.listening import bind
from service.metrics import Metrics
from service.settings import Settings, exposure
from service.tls import Certificate, Handshakes, open_certificate

log = logging.getLogger("me5.server")

# What is open beside connections: the engine's sockets, files, the listener.
OTHER_FILES = 64
# How long a thread may keep the interpreter while the event loop waits for it. Python's own 5 ms would be most of what
# a query takes; at 0.5 ms a busy tokenizer's thread loses less than 1 % by switching.
SWITCH_INTERVAL_S = 0.0005


class Server(uvicorn.Server):
    """uvicorn's server with a first, soft phase of ending.

    On SIGTERM /readyz turns red while the port stays open for drain_s, so that a load balancer looks away before
    connections are refused; then uvicorn stops to listen and waits for the requests it has, shutdown_s at most. A
    second signal, or SIGINT, skips the first phase; a second SIGINT also the wait.
    """

    def __init__(self, config: uvicorn.Config, embedder: Embedder, certificate: Certificate | None = None) -> None:
        super().__init__(config)
        self._embedder = embedder
        self._certificate = certificate
        self._handshakes: Handshakes | None = None
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own; with a certificate, what listens is ours."""
        if self._certificate is None or sockets is None:
            await super().startup(sockets)
            return
        await super().startup([])
        (listener,) = sockets
        protocol = self.config.http_protocol_class
        assert issubclass(protocol, HttpProtocol)
        limits = protocol.limits
        self._handshakes = Handshakes(
            listener,
            self._certificate,
            self.server_state.connections,
            lambda: protocol(self.config, self.server_state, self.lifespan.state),
            most=limits.max_connections + SPARE_CONNECTIONS,
            timeout_s=limits.header_timeout_s,
            count_refused=lambda reason: limits.metrics.refused_connections.labels(reason).inc(),
        )
        self._handshakes.start(self.config.backlog)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own, with an answer for the requests that outlast it: cut off, their clients would see a reset."""
        self._loop.call_later(self._shutdown_s, self._embedder.refuse_all)
        if self._handshakes is not None:
            await self._handshakes.stop()
        await super().shutdown(sockets)

    def _stop_listening(self) -> None:
        self.should_exit = True


async def serve(settings: Settings, open_host: OpenHost = open_process, listener: socket.socket | None = None) -> None:
    """Open the model, prove it, listen, and return once the process was told to end. Raises StartupError.

    open_host: how engines are opened; each in a process of its own by default.   listener: where to listen, bound
    already.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Taken before the model is read: who else has the port is known at once, and nobody gets it meanwhile.
    listener = listener or bind(settings.host, settings.port)
    certificate = open_certificate(settings)
    if warning := exposure(settings):
        log.warning(warning)
    app = create_app(settings, open_host=open_host)
    # Made while the engine opens in a process of its own.
    app.openapi()
    embedder: Embedder = app.state.embedder
    try:
        await embedder.start()
    except Me5Error:
        await embedder.stop()
        raise
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=_protocol(settings, embedder.metrics),
        ws="none",
        # Behind our own end of patience, and time for its answers to leave.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_s) + 2,
        # Connections of a client that keeps them open outlive most of its pauses.
        timeout_keep_alive=75,
    )
    log.info("listening on %s://%s:%d", "https" if certificate else "http", *listener.getsockname()[:2])
    end_collecting = collect_now_and_then()
    watching = asyncio.create_task(certificate.watch()) if certificate else None
    try:
        await Server(config, embedder, certificate).serve(sockets=[listener])
    finally:
        end_collecting()
        if watching is not None:
            watching.cancel()


def _protocol(settings: Settings, metrics: Metrics) -> type[HttpProtocol]:
    """The protocol with this gateway's limits."""

    class Limited(HttpProtocol):
        limits = Limits(
            max_connections=_allow_files(settings.max_connections),
            header_timeout_s=settings.header_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            metrics=metrics,
            refuse=functools.partial(refuse, settings=settings),
        )

    return Limited


def _allow_files(max_connections: int) -> int:
    """Raise the process's limit of open files to what so many connections need; fewer connections where it can't be.

    Without it a process at its limit can't even accept a connection to refuse it.
    """
    others = SPARE_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < max_connections + others:
        allowed = max(1, hard - others)
        log.warning("ME5_MAX_CONNECTIONS=%d is cut to %d: ulimit -n is %d", max_connections, allowed, hard)
        max_connections = allowed
    if soft != resource.RLIM_INFINITY and soft < max_connections + others:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_connections + others, hard))
    return max_connections


def run(settings: Settings, open_host: OpenHost = open_process, listener: socket.socket | None = None) -> None:
    """serve, on uvloop where it is installed. A SIGTERM before anything was accepted ends the process at once."""
    # As a container's first process it would else not hear the signal until the model is open: Linux gives process 1
    # no default actions. The engine's process ends with its parent.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    loop_factory = uvicorn.Config(app="", loop="auto", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(settings, open_host, listener))
