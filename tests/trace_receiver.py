"""A receiver of traces: OTLP over gRPC, as a collector has it, and one that fails to order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

Value = str | int | float | bool

# Spans leave soon, and so does the call that carries them to a receiver that hangs.
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """OpenTelemetry's own settings for the gateways that start meanwhile, and no others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
            patch.delenv(name, raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        yield


@dataclass(frozen=True)
class Seen:
    """A span as it came. Moments in nanoseconds since 1970; ids in hexadecimal digits, parent "" for none."""

    name: str
    trace: str
    id: str
    parent: str
    state: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    links: list[tuple[str, str]]
    failed: bool
    events: list[dict[str, Value]]
    resource: dict[str, Value]

    @property
    def ms(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6

    @property
    def place(self) -> tuple[str, str]:
        """What a link to it says."""
        return self.trace, self.id


@dataclass
class Receiver(TraceServiceServicer):
    """go: clear to hang in every call.   abort: a status to refuse every call with.   keep: whether spans are kept."""

    url: str = ""
    spans: list[Seen] = field(default_factory=list)
    calls: int = 0
    go: threading.Event = field(default_factory=threading.Event)
    abort: grpc.StatusCode | None = None
    keep: bool = True

    def Export(  # noqa: N802
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self.calls += 1
        while not self.go.wait(0.1) and context.is_active():
            pass
        if self.abort is not None:
            context.abort(self.abort, "to order")
        if self.keep:
            self.spans.extend(spans_of(request))
        return ExportTraceServiceResponse()

    def trace(self, trace: str) -> list[Seen]:
        """The spans of a trace that are here by now."""
        return [span for span in list(self.spans) if span.trace == trace]

    def wait(self, holds: Callable[[Sequence[Seen]], bool], max_s: float = 30.0) -> list[Seen]:
        """All spans, once this holds of them."""
        give_up = time.monotonic() + max_s
        while time.monotonic() < give_up:
            if holds(found := list(self.spans)):
                return found
            time.sleep(0.02)
        raise AssertionError(f"not so after {max_s:g} s: {[(span.name, span.attributes) for span in self.spans]}")

    def wait_for_request(self, request_id: str) -> tuple[Seen, list[Seen]]:
        """The span of the request with this id, and all of its trace; the request's own comes last of them."""

        def its_own(found: Sequence[Seen]) -> list[Seen]:
            return [span for span in found if span.attributes.get("me5.request_id") == request_id]

        (own,) = its_own(self.wait(lambda found: bool(its_own(found))))
        return own, self.trace(own.trace)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port."""
    found = Receiver()
    found.go.set()
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads)
        add_TraceServiceServicer_to_server(found, server)
        found.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield found
        finally:
            found.go.set()
            server.stop(None).wait()


def spans_of(request: ExportTraceServiceRequest) -> list[Seen]:
    """What an exporter sent, flat."""
    return [
        Seen(
            name=span.name,
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            state=span.trace_state,
            kind=span.kind,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            attributes=attributes_of(span.attributes),
            links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
            failed=span.status.code == span.status.STATUS_CODE_ERROR,
            events=[attributes_of(event.attributes) for event in span.events],
            resource=attributes_of(resource.resource.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def attributes_of(pairs: Sequence[KeyValue]) -> dict[str, Value]:
    """OTLP's pairs as a dictionary; only single values are sent here."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def wait_until(holds: Callable[[], object], max_s: float = 30.0) -> None:
    """Poll until this comes true; fail after max_s."""
    give_up = time.monotonic() + max_s
    while not holds():
        assert time.monotonic() < give_up, "not within the time"
        time.sleep(0.01)
