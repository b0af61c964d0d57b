"""A trace goes on in Triton: its own spans, sent by itself, lie below the gateway's batch."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gateway_process import MODEL_REPO, SHIPPED_MODEL, start_gateway
from trace_receiver import QUICK, Seen, receiver, variables
from triton_server import needs_triton, start_triton

CLIENT = 3
ATTEMPTS = 4
Span = dict[str, str]


@contextmanager
def http_receiver() -> Iterator[tuple[str, list[Span]]]:
    """OTLP over HTTP as Triton speaks it, in JSON: the address, and the spans that have come."""
    found: list[Span] = []

    class Traces(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.extend(
                span for part in sent["resourceSpans"] for scope in part["scopeSpans"] for span in scope["spans"]
            )
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Traces) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", found
        finally:
            server.shutdown()


@needs_triton
def test_tritons_own_spans_lie_below_the_batch_and_an_untraced_request_has_none() -> None:
    with ExitStack() as stack:
        found = stack.enter_context(receiver())
        url, of_triton = stack.enter_context(http_receiver())
        stack.enter_context(variables(QUICK))
        settings = (
            "mode=opentelemetry",
            f"opentelemetry,url={url}",
            "opentelemetry,bsp_schedule_delay=100",
            "level=TIMESTAMPS",
            # Of itself it traces one request in so many; what comes with a traceparent is always traced.
            "rate=1000000000",
        )
        options = [part for each in settings for part in ("--trace-config", each)]
        triton = stack.enter_context(start_triton(MODEL_REPO, model=SHIPPED_MODEL, options=options))
        gateway = stack.enter_context(
            start_gateway(
                engine="triton", triton_urls=triton.grpc_url, precision="fp32", otlp_endpoint=found.url, drain_s=0
            )
        )
        client = stack.enter_context(gateway.client())
        unsampled = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
        assert client.post("/embed", json={"inputs": "one"}, headers=unsampled).status_code == 200
        batches: dict[str, Seen] = {}
        below: list[Span] = []
        # Triton sends a batch of spans once, and lets it go where that fails; so more than one request is traced.
        for number in range(ATTEMPTS):
            name = f"traced-{number}"
            assert client.post("/embed", json={"inputs": "one"}, headers={"x-request-id": name}).status_code == 200
            _, spans = found.wait_for_request(name)
            (batch,) = [span for span in spans if span.name == "batch"]
            assert batch.kind == CLIENT
            batches[batch.id] = batch
            give_up = time.monotonic() + 10
            while not below and time.monotonic() < give_up:
                time.sleep(0.05)
                below = [span for span in of_triton if span.get("parentSpanId") in batches]
            if below:
                break
        assert below, of_triton
        assert {span["traceId"] for span in of_triton} <= {batch.trace for batch in batches.values()}
        # The clocks are one machine's. Triton's span may end after its answer has arrived here.
        for span in below:
            batch = batches[span["parentSpanId"]]
            assert batch.start_ns <= int(span["startTimeUnixNano"]) <= batch.end_ns
