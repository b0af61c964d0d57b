"""The way of spans out of the process: bounded in memory and time, and quiet where nobody takes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import DEFAULT_ON

from service import __version__

log = logging.getLogger("me5.tracing")

# What the last spans have to leave in when the process ends, and what a call that is cut off may still take.
FLUSH_S, CUT_OFF_S = 2.0, 1.0
# Between two outages that are told of.
QUIET_S = 60.0
# Of the package's loggers, those that speak at every failed try, or at every span that finds no room.
_NOISY = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal")


class SpanExport:
    """A tracer whose spans go to an endpoint, http://HOST:PORT or https://HOST:PORT, from a thread of their own.

    The queue of spans, the batches they leave in, headers, certificates and the resource follow the OTEL_* variables of
    OpenTelemetry's SDK: 2048 spans wait at most, and what comes then pushes the oldest out. The provider stays private:
    whatever else looks for a global one finds none.
    """

    def __init__(self, endpoint: str, *, model: str, model_version: str) -> None:
        ours = {
            "service.name": "me5",
            "service.version": __version__,
            "host.name": socket.gethostname(),
            "me5.model.name": model,
            "me5.model.version": model_version,
        }
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider = TracerProvider(
            # Which requests are traced is drawn before a span costs anything; all that gets here is one of theirs.
            sampler=DEFAULT_ON,
            # Merged last, so that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over ours.
            resource=Resource.create(ours).merge(OTELResourceDetector().detect()),
            # Its own way to end waits half a minute for a receiver that is down.
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(Told(self._exporter, endpoint)))
        self.tracer = self._provider.get_tracer("me5", __version__)

    async def close(self) -> None:
        """Send what is left, within FLUSH_S; a receiver that is down or hangs is not waited for any longer."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            self._provider.shutdown()
            # The loop may be gone by then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        # A thread of its own, which the process does not wait for.
        threading.Thread(target=end, name="end of tracing", daemon=True).start()
        try:
            await asyncio.wait_for(ended.wait(), FLUSH_S)
        except TimeoutError:
            log.warning("the last spans were not sent within %g s and are given up", FLUSH_S)
            # Cuts the call that hangs, and makes what is still queued fail at once.
            self._exporter.shutdown()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), CUT_OFF_S)


class Told(SpanExporter):
    """An exporter that says once that spans are lost, and once that they get through again, QUIET_S apart at least.

    OpenTelemetry's own says it at every try, in several voices; they are silenced, and their words are kept for ours.
    """

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter, self._endpoint = exporter, endpoint
        self._silent = False
        self._speak_from = 0.0
        self._lost = 0
        self._why = ""
        # Other parts warn of what a client sends, a traceparent of a thousand signs for one.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        for name in _NOISY:
            noisy = logging.getLogger(name)
            noisy.setLevel(logging.WARNING)
            noisy.addFilter(self._hear)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Never raises."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._why, result = repr(error), SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            if self._silent:
                log.warning("spans get through to %s again; %d or more were lost", self._endpoint, self._lost)
            self._silent, self._lost = False, 0
        else:
            self._lost += len(spans)
            self._tell()
        return result

    def shutdown(self) -> None:
        """End the exporter within its own bounds."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._exporter.force_flush(timeout_millis)

    def _tell(self) -> None:
        if not self._silent and (now := time.monotonic()) >= self._speak_from:
            self._silent, self._speak_from = True, now + QUIET_S
            log.warning(
                "spans are lost on their way to ME5_OTLP_ENDPOINT=%s: %s. Requests are served as ever; is the receiver "
                "up, and does it take OTLP over gRPC there? Nothing more is said until spans get through",
                self._endpoint,
                self._why or "no reason was given",
            )

    def _hear(self, record: logging.LogRecord) -> bool:
        """A logger's filter that lets nothing pass."""
        if record.msg.startswith("Queue full"):
            self._lost += 1
            self._why = "more of them than it takes (OTEL_BSP_MAX_QUEUE_SIZE)"
            self._tell()
        elif record.levelno >= logging.ERROR:
            self._why = record.getMessage()
        return False
