"""uvicorn's HTTP protocol, for clients that are slow, silent, many, or don't listen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar

import orjson
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.answering import CUT
from service.errors import HeadersTooLarge, Me5Error, RequestTimeout, TooManyConnections
from service.metrics import Metrics

# Keys and cookies take a few hundred bytes; nginx and Go's server stop at 8 and 1024 KiB.
HEADER_BYTES_MAX = 32 * 1024
# Connections over the limit, so that each is told why, and probes get through; any more are dropped without a word.
SPARE_CONNECTIONS = 64
# What supervisors and Prometheus ask for has an answer however many clients there are.
PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})


@dataclass(frozen=True)
class Limits:
    """refuse: the application that answers a request with an error, in the shape of its route."""

    max_connections: int
    header_timeout_s: float
    write_timeout_s: float
    metrics: Metrics
    refuse: Callable[[Me5Error], Callable[..., Awaitable[None]]]


class HttpProtocol(HttpToolsProtocol):
    """One connection. uvicorn waits for ever for headers, and for a client to read its answer; this does not."""

    limits: ClassVar[Limits]

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _running: RequestResponseCycle | None = None
    _begun = 0
    _bytes_in_headers = 0
    _bytes_of_headers = 0
    _one_too_many = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Over the limit, a connection may say what it wants before it is refused; it has a tenth of the time."""
        super().connection_made(transport)
        limits, count = self.limits, len(self.connections)
        limits.metrics.open_connections.set(count)
        self._one_too_many = count > limits.max_connections
        if count > limits.max_connections + SPARE_CONNECTIONS:
            self._cut("too_many")
            return
        wait_s = limits.header_timeout_s / 10 if self._one_too_many else limits.header_timeout_s
        self._timer = self.loop.call_later(wait_s, self._give_up_waiting)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing of the connection stays."""
        self._tell_running_request()
        super().connection_lost(exc)
        self.limits.metrics.open_connections.set(len(self.connections))
        self._stop_timer()
        self._stop_write_timer()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request's headers, or for a next request, no longer than the limit."""
        begun = self._begun
        starts_in_headers = self._in_headers
        starts_between = not starts_in_headers and (self.cycle is None or not self.cycle.more_body)
        super().data_received(data)
        if self.transport.is_closing():
            return
        # A header that is not complete yet is only seen here, by its bytes; those of an earlier body don't count.
        if self._in_headers and (starts_in_headers or starts_between) and self._begun == begun + starts_between:
            self._bytes_in_headers += len(data)
        if self._in_headers and max(self._bytes_in_headers, self._bytes_of_headers) > HEADER_BYTES_MAX:
            self._refuse_headers()
        elif self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None and self.timeout_keep_alive_task is None:
            # Half a request, empty lines, or the rest of a body that has its answer already.
            self._timer = self.loop.call_later(self.limits.header_timeout_s, self._give_up_waiting)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._begun += 1
        self._in_headers, self._bytes_in_headers, self._bytes_of_headers = True, 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, whole."""
        super().on_header(name, value)
        self._bytes_of_headers += len(name) + len(value)

    def on_headers_complete(self) -> None:
        """The request starts, or the answer that refuses it."""
        self._in_headers = False
        limits = self.limits
        if self._bytes_of_headers + len(self.url) > HEADER_BYTES_MAX:
            limits.metrics.refused_connections.labels("headers_too_large").inc()
            self.app = limits.refuse(_headers_too_large())
        elif self._one_too_many and self.url.partition(b"?")[0].decode("latin-1") not in PROBES:
            limits.metrics.refused_connections.labels("too_many").inc()
            self.app = limits.refuse(
                TooManyConnections(
                    f"{limits.max_connections} connections are open already (ME5_MAX_CONNECTIONS); try again in "
                    f"{TooManyConnections.retry_after_s} s, or keep connections open between requests"
                )
            )
        super().on_headers_complete()
        if self._one_too_many and self.cycle is not None:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        """The client has left 64 KiB unread: it has some time to take most of it."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self._cut, "not_reading")

    def resume_writing(self) -> None:
        """It reads on."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_write_timer()

    def on_response_complete(self) -> None:
        """A connection that closes once its last bytes are read must not wait for that for ever."""
        super().on_response_complete()
        if self.transport.is_closing() and self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self._cut, "not_reading")

    def timeout_keep_alive_handler(self) -> None:
        """Idle for long; an answer that was not read by now never will be."""
        if self.transport.get_write_buffer_size():
            self._cut("not_reading")
        else:
            super().timeout_keep_alive_handler()

    def _give_up_waiting(self) -> None:
        self._timer = None
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return
        self.limits.metrics.refused_connections.labels("header_timeout").inc()
        if self.cycle is None or self._in_headers:
            wait_s = self.limits.header_timeout_s
            self._last_words(
                RequestTimeout(
                    f"no complete request headers within {wait_s:g} s (ME5_HEADER_TIMEOUT_S); send them faster"
                )
            )
        self.transport.close()

    def _refuse_headers(self) -> None:
        self.limits.metrics.refused_connections.labels("headers_too_large").inc()
        self._last_words(_headers_too_large())
        self.transport.close()

    def _last_words(self, error: Me5Error) -> None:
        """An answer to what is not a request yet, so it has no route and gets the shape most routes have."""
        body = orjson.dumps({"error": error.message, "error_type": "Validation"})
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (error.status, _PHRASES[error.status], len(body), body)
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        cycle.scope[CUT] = self._cut  # type: ignore[literal-required]
        super()._start_asgi_task(cycle, app)

    def _tell_running_request(self) -> None:
        # uvicorn tells the request that came last, which among pipelined ones is not the one that runs.
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _cut(self, reason: str) -> None:
        self.limits.metrics.refused_connections.labels(reason).inc()
        # Before the transport drops what it holds, which would let the answer's next part be written.
        self._tell_running_request()
        self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


_PHRASES = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def _headers_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"the request's headers are larger than {HEADER_BYTES_MAX} bytes; send fewer of them")
