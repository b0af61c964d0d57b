"""Spans of requests and batches, sent by OTLP over gRPC. Imported only where ME5_OTLP_ENDPOINT is set.

A trace as a person finds it, for a request whose texts went into one batch:

    POST /embed                 SERVER; below the caller's span where it sent `traceparent`
    ├── tokenise
    ├── queue                   from the queue's door until the last text left for a batch
    └── engine                  this request's part of a batch: its texts and tokens
        └── batch               CLIENT where another machine computes, whose own spans come below it

A batch serves many requests and a span has one parent. So a batch that carries one traced request lies in that
request's trace, and everything is in one picture. A batch of several is a trace of its own: made the child of any one
of them, it would be missing in the others. It links to every request, and each request's `engine` span links back to it
and tells its size, so that the way is one click in either direction.

Spans cost as much as some of the work they describe: all that can wait is written once the request has its answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import Me5Error
from service.jobs import untraced
from service.span_export import SpanExport

if TYPE_CHECKING:
    from service.batching import Lane
    from service.engine import EngineHost
    from service.jobs import Pending

Headers = Sequence[tuple[bytes, bytes]]

# A request of thousands of texts is hundreds of batches; the first ones tell what the others are like.
ENGINE_SPANS_MAX = 32
# The wall clock is set forward or back now and then; what is less than this is the time between two looks.
CLOCK_STEP_NS = 1_000_000
# Engines on other machines.
REMOTE_ENGINES = frozenset({"triton"})

_PROPAGATOR = TraceContextTextMapPropagator()


class Clock:
    """Moments of the monotonic clock as nanoseconds since 1970, by one offset: spans nest as their moments do."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def look(self) -> None:
        """Follow a wall clock that was set."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        if abs(offset_ns - self._offset_ns) > CLOCK_STEP_NS:
            self._offset_ns = offset_ns

    def ns(self, moment: float) -> int:
        """moment: seconds, as time.monotonic gives them."""
        return self._offset_ns + int(moment * 1e9)


class Tracing:
    """Decides which requests are traced, and sends their spans.

    endpoint: http://HOST:PORT or https://HOST:PORT.   ratio: of the requests that come without a trace, 0 to 1; those
    with a sampled parent are always traced, those with an unsampled one never.
    """

    def __init__(self, endpoint: str, ratio: float, *, model: str, model_version: str) -> None:
        self.ratio = ratio
        self._clock = Clock()
        self._export = SpanExport(endpoint, model=model, model_version=model_version)
        self._tracer = self._export.tracer

    def begin(
        self, path: str, headers: Headers, started: float, *, scheme: str, client: str | None, request_id: str
    ) -> RequestTrace | None:
        """The trace of a POST to this path, or None where it is not traced. started: on the monotonic clock."""
        parent = self._parent(headers)
        if parent is None:
            return None
        self._clock.look()
        attributes = {
            "http.request.method": "POST",
            "http.route": path,
            "url.path": path,
            "url.scheme": scheme,
            "me5.request_id": request_id,
        }
        if client:
            attributes["client.address"] = client
        for name, value in headers:
            if name == b"user-agent":
                attributes["user_agent.original"] = value.decode("latin-1")
        span = self._tracer.start_span(
            f"POST {path}", parent, SpanKind.SERVER, attributes, start_time=self._clock.ns(started)
        )
        # OTEL_SDK_DISABLED gives spans that keep nothing.
        return RequestTrace(self._tracer, self._clock, span) if span.is_recording() else None

    def batch(
        self, host: EngineHost, lane: Lane, batch: Sequence[Pending], started: float
    ) -> AbstractAsyncContextManager[str | None]:
        """Around a batch's time on its host; gives the batch's `traceparent`, or None where no request is traced."""
        parts: dict[RequestTrace, list[Pending]] = {}
        for pending in batch:
            if pending.job.trace is not None:
                parts.setdefault(pending.job.trace, []).append(pending)
        for trace, texts in parts.items():
            trace.taken(texts, started)
        shown = {trace: texts for trace, texts in parts.items() if trace.batches <= ENGINE_SPANS_MAX}
        return BatchTrace(self._tracer, self._clock, host, lane, batch, shown, started) if shown else untraced()

    async def close(self) -> None:
        """Send the last spans, for a bounded time."""
        await self._export.close()

    def _parent(self, headers: Headers) -> Context | None:
        """The context that a request's span begins in, or None where the request is not traced."""
        given: dict[str, list[str]] = {}
        for name, value in headers:
            if name in (b"traceparent", b"tracestate"):
                given.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        if "traceparent" in given:
            parent = _PROPAGATOR.extract(given, Context())
            context = get_current_span(parent).get_span_context()
            # One that can't be read counts as none.
            if context.is_valid:
                return parent if context.trace_flags.sampled else None
        return Context() if random.random() < self.ratio else None


class RequestTrace:
    """One traced request. Every moment is on the monotonic clock.

    batches: how many have taken texts of it.
    """

    def __init__(self, tracer: Tracer, clock: Clock, span: Span) -> None:
        self.batches = 0
        self.span_context = span.get_span_context()
        self.context = set_span_in_context(span, Context())
        self._tracer, self._clock, self._span = tracer, clock, span
        self._tokenised: tuple[float, float] | None = None
        self._queued_at: float | None = None
        self._taken_at = 0.0
        self._waiting = self._texts = 0
        self._waited_s = 0.0

    @property
    def trace_id(self) -> str:
        """In hexadecimal digits, as viewers of traces search for it."""
        return format_trace_id(self.span_context.trace_id)

    def tokenised(self, started: float, spent_s: float, *, role: str, tokens: Sequence[int], truncated: int) -> None:
        """The request's texts are tokens now, so many each; `truncated` of them were cut."""
        self._tokenised = started, started + spent_s
        self._span.set_attributes(
            {
                "me5.role": role,
                "me5.inputs": len(tokens),
                "me5.tokens": sum(tokens),
                "me5.truncated": truncated,
            }
        )

    def queued(self, now: float, lane: Lane, texts: int) -> None:
        """The texts wait in this lane from now on."""
        self._queued_at, self._waiting, self._texts = now, texts, texts
        self._span.set_attribute("me5.lane", lane)

    def taken(self, texts: Sequence[Pending], now: float) -> None:
        """A batch has these texts now."""
        self.batches += 1
        # Exactly what the queue's own measure starts from.
        self._queued_at, self._taken_at = texts[0].arrived, now
        self._waiting -= len(texts)
        self._waited_s += sum(now - pending.arrived for pending in texts)

    def failed(self, error: Exception) -> None:
        """The request is answered with this error."""
        if isinstance(error, Me5Error):
            # Raised on purpose: its words say all, and a stack would tell what everybody knows.
            self._span.set_attribute("error.type", error.code)
            self._span.add_event(
                "exception", {"exception.type": type(error).__qualname__, "exception.message": error.message}
            )
        else:
            self._span.set_attribute("error.type", Me5Error.code)
            self._span.record_exception(error)

    def end(self, status: int, now: float) -> None:
        """The answer has left with this status, 0 for none."""
        if self._tokenised is not None:
            began, ended = self._tokenised
            self._child("tokenise", began, ended)
        if self._queued_at is not None:
            left = self._texts - self._waiting
            attributes: dict[str, float] = {"me5.texts": self._texts, "me5.texts.never_taken": self._waiting}
            if left:
                # What the header x-queue-time says.
                attributes["me5.queue.mean_s"] = self._waited_s / left
            self._child("queue", self._queued_at, now if self._waiting else self._taken_at, attributes)
            self._span.set_attribute("me5.batches", self.batches)
        if status:
            self._span.set_attribute("http.response.status_code", status)
        # A 4xx is the caller's error: OpenTelemetry's conventions leave the status of a server's span alone there.
        if not 0 < status < 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._clock.ns(now))

    def _child(self, name: str, began: float, ended: float, attributes: dict[str, float] | None = None) -> None:
        span = self._tracer.start_span(name, self.context, attributes=attributes, start_time=self._clock.ns(began))
        span.end(self._clock.ns(ended))


class BatchTrace(AbstractAsyncContextManager[str]):
    """A batch on its host: a span of its own, and one for each traced request it carries."""

    def __init__(
        self,
        tracer: Tracer,
        clock: Clock,
        host: EngineHost,
        lane: Lane,
        batch: Sequence[Pending],
        parts: dict[RequestTrace, list[Pending]],
        started: float,
    ) -> None:
        self._clock = clock
        start_ns = clock.ns(started)
        about: dict[str, str | int] = {
            "me5.lane": lane,
            "me5.engine": host.name,
            "me5.batch.texts": len(batch),
            "me5.batch.tokens": sum(pending.length for pending in batch),
            "me5.batch.requests": len({id(pending.job) for pending in batch}),
        }
        self._engines = [
            tracer.start_span(
                "engine",
                trace.context,
                attributes={
                    **about,
                    "me5.texts": len(texts),
                    "me5.tokens": sum(pending.length for pending in texts),
                },
                start_time=start_ns,
            )
            for trace, texts in parts.items()
        ]
        longest = max(pending.length for pending in batch)
        self._batch = tracer.start_span(
            "batch",
            set_span_in_context(self._engines[0], Context()) if len(parts) == 1 else Context(),
            SpanKind.CLIENT if host.name in REMOTE_ENGINES else SpanKind.INTERNAL,
            {**about, "me5.batch.longest": longest, "me5.precision": host.precision, "me5.device": host.device},
            links=[Link(trace.span_context) for trace in parts],
            start_time=start_ns,
        )
        context = self._batch.get_span_context()
        if len(parts) > 1:
            for span in self._engines:
                span.add_link(context)

    async def __aenter__(self) -> str:
        return traceparent(self._batch.get_span_context())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        end_ns = self._clock.ns(time.monotonic())
        for span in (self._batch, *self._engines):
            if isinstance(error, asyncio.CancelledError):
                # Nobody waits for it any more; nothing went wrong.
                span.set_attribute("me5.cancelled", True)
            elif error is not None:
                span.set_attribute("error.type", _kind_of(error))
                span.set_status(StatusCode.ERROR, str(error) or None)
            span.end(end_ns)


def traceparent(context: SpanContext) -> str:
    """A place in a trace as W3C Trace Context words it, version 00."""
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def _kind_of(error: BaseException) -> str:
    if isinstance(error, Me5Error):
        return error.code
    return "timeout" if isinstance(error, TimeoutError) else type(error).__qualname__
