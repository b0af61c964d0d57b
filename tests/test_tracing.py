"""Traces of the gateway as a real receiver gets them, and the gateway beside receivers that are no good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import psutil
import pytest
from faulty_engine import SHIPPED, FaultyEngine
from gateway_process import SHIPPED_MODEL, Gateway, free_port, start_gateway
from in_thread import InThread
from metric_series import scrape, total, wait_until_queue_is_empty
from numpy.typing import NDArray
from trace_receiver import QUICK, Receiver, Seen, receiver, variables, wait_until

from service import __version__
from service.asking import Ask
from service.batching import Lane
from service.embedder import Embedder
from service.engine import EngineConfig, EngineHost, Widths
from service.metrics import Metrics
from service.recipe.spec import ModelSpec
from service.settings import Settings
from service.tracing import ENGINE_SPANS_MAX, Tracing

CALLER_TRACE, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, INTERNAL, CLIENT = 2, 1, 3
# A header's milliseconds are rounded.
ROUNDED_MS = 0.51

Traced = tuple[Gateway, httpx.Client, Receiver]


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    """A gateway whose every request is traced, its client, and the receiver.

    One batch at a time, and a short queue: both lanes are easily kept busy.
    """
    with ExitStack() as stack:
        found = stack.enter_context(receiver())
        stack.enter_context(variables(QUICK))
        gateway = stack.enter_context(
            start_gateway(otlp_endpoint=found.url, streams=1, max_queued_tokens=600, drain_s=0, engine="onnx")
        )
        yield gateway, stack.enter_context(gateway.client()), found


def passages(count: int) -> dict[str, object]:
    """The body of an indexing request."""
    return {"inputs": [f"{index}: the harbour of Rotterdam lies by the sea" for index in range(count)]}


def named(spans: Sequence[Seen], name: str) -> list[Seen]:
    return [span for span in spans if span.name == name]


def one(spans: Sequence[Seen], name: str) -> Seen:
    (found,) = named(spans, name)
    return found


def test_a_requests_spans_nest_and_agree_with_its_timing_headers(traced: Traced, spec: ModelSpec) -> None:
    _, client, found = traced
    wait_until_queue_is_empty(client)
    body = {"inputs": ["how deep is the harbour?", "many words " * 600], "input_type": "query"}
    before_ns = time.time_ns()
    response = client.post("/embed", json=body, headers={"x-request-id": "nested"})
    after_ns = time.time_ns()
    assert response.status_code == 200
    request, spans = found.wait_for_request("nested")
    # A long text and a short one don't share a batch.
    batches, engines = named(spans, "batch"), named(spans, "engine")
    assert sorted(span.name for span in spans) == sorted(
        ["POST /embed", "tokenise", "queue", *["engine"] * len(engines), *["batch"] * len(engines)]
    )
    assert request.name == "POST /embed"
    assert (request.parent, request.kind, request.failed) == ("", SERVER, False)
    assert response.headers["x-request-id"] == "nested"
    told = {
        "http.request.method": "POST",
        "http.route": "/embed",
        "url.path": "/embed",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "user_agent.original": f"python-httpx/{httpx.__version__}",
        "me5.role": "query",
        "me5.lane": response.headers["x-me5-lane"],
        "me5.inputs": 2,
        "me5.tokens": int(response.headers["x-compute-tokens"]),
        "me5.truncated": 1,
        "me5.batches": len(batches),
        "me5.request_id": "nested",
    }
    assert request.attributes == told
    assert (
        request.resource.items()
        >= {
            "service.name": "me5",
            "service.version": __version__,
            "me5.model.name": spec.name,
            "me5.model.version": SHIPPED.name,
        }.items()
    )

    tokenise, queue = one(spans, "tokenise"), one(spans, "queue")
    for span in (tokenise, queue, *engines):
        assert span.parent == request.id
    for engine, batch in zip(
        sorted(engines, key=lambda span: span.start_ns), sorted(batches, key=lambda span: span.start_ns), strict=True
    ):
        assert (batch.parent, batch.kind) == (engine.id, INTERNAL)
        assert batch.links == [request.place]
        assert (batch.start_ns, batch.end_ns) == (engine.start_ns, engine.end_ns)
        assert batch.attributes["me5.batch.requests"] == 1
    assert sum(int(engine.attributes["me5.tokens"]) for engine in engines) == told["me5.tokens"]
    assert before_ns <= request.start_ns <= tokenise.start_ns <= tokenise.end_ns <= queue.start_ns
    assert queue.end_ns == max(engine.start_ns for engine in engines)
    assert max(engine.end_ns for engine in engines) <= request.end_ns <= after_ns + 1e9

    def header(name: str) -> float:
        return float(response.headers[name])

    assert tokenise.ms == pytest.approx(header("x-tokenization-time"), abs=ROUNDED_MS)
    assert float(queue.attributes["me5.queue.mean_s"]) * 1000 == pytest.approx(header("x-queue-time"), abs=ROUNDED_MS)
    mean_engine_ms = sum(engine.ms * int(engine.attributes["me5.texts"]) for engine in engines) / 2
    # The header counts on until the vectors are handed out.
    assert header("x-inference-time") - 20 < mean_engine_ms < header("x-inference-time") + ROUNDED_MS
    assert request.ms > header("x-total-time") - ROUNDED_MS


def test_a_lone_texts_queue_is_the_queue_header(traced: Traced) -> None:
    _, client, found = traced
    wait_until_queue_is_empty(client)
    response = client.post("/v1/embeddings", json={"input": "one"}, headers={"x-request-id": "lone"})
    request, spans = found.wait_for_request("lone")
    assert request.name == "POST /v1/embeddings"
    assert [span.name for span in sorted(spans, key=lambda span: span.start_ns)] == [
        "POST /v1/embeddings",
        "tokenise",
        "queue",
        *sorted(["engine", "batch"], key=[span.name for span in spans].index),
    ]
    assert one(spans, "queue").ms == pytest.approx(float(response.headers["x-queue-time"]), abs=ROUNDED_MS)


def test_routes_without_an_engine_have_a_span_and_probes_have_none(traced: Traced) -> None:
    _, client, found = traced
    for path in ("/livez", "/readyz", "/metrics", "/info"):
        client.get(path, headers={"x-request-id": path})
    client.post("/nowhere", json={}, headers={"x-request-id": "nowhere"})
    client.post("/tokenize", json={"inputs": "one"}, headers={"x-request-id": "tokens"})
    request, spans = found.wait_for_request("tokens")
    assert [span.name for span in spans] == ["POST /tokenize"]
    assert request.attributes["http.response.status_code"] == 200
    ids = {span.attributes.get("me5.request_id") for span in found.spans}
    assert not ids & {"/livez", "/readyz", "/metrics", "/info", "nowhere"}


def test_a_traceparent_is_continued_with_its_state(traced: Traced) -> None:
    _, client, found = traced
    response = client.post(
        "/embed",
        json={"inputs": "one"},
        headers=[
            ("x-request-id", "continued"),
            ("traceparent", f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"),
            ("tracestate", "vendor=abc"),
            ("tracestate", "other=1"),
        ],
    )
    request, spans = found.wait_for_request("continued")
    assert (request.trace, request.parent) == (CALLER_TRACE, CALLER_SPAN)
    assert {span.state for span in spans} == {"vendor=abc,other=1"}
    assert sorted(span.name for span in spans) == ["POST /embed", "batch", "engine", "queue", "tokenise"]
    assert not {"traceparent", "traceresponse"} & set(response.headers)


@pytest.mark.parametrize(
    "given",
    ["nonsense", f"00-{'0' * 32}-{CALLER_SPAN}-01", f"ff-{CALLER_TRACE}-{CALLER_SPAN}-01", "9" * 5000, "\xff\xfe"],
)
def test_a_traceparent_that_cant_be_read_begins_a_new_trace(traced: Traced, given: str) -> None:
    gateway, client, found = traced
    request_id = f"unreadable-{abs(hash(given))}"
    response = client.post(
        "/embed",
        json={"inputs": "one"},
        headers=[(b"x-request-id", request_id.encode()), (b"traceparent", given.encode("latin-1"))],
    )
    assert response.status_code == 200
    request, _ = found.wait_for_request(request_id)
    assert request.parent == ""
    assert request.trace not in (CALLER_TRACE, "0" * 32)
    assert "opentelemetry" not in gateway.log_text()


def test_requests_that_share_a_batch_are_linked_by_its_span(traced: Traced) -> None:
    gateway, client, found = traced
    wait_until_queue_is_empty(client)

    def ask(number: int) -> int:
        with gateway.client() as own:
            return own.post(
                "/embed", json={"inputs": f"question {number}"}, headers={"x-request-id": f"shared-{number}"}
            ).status_code

    # With one stream, what comes while a batch runs makes the next one.
    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(ask, range(48))) == {200}
    requests = {}
    for number in range(48):
        request, _ = found.wait_for_request(f"shared-{number}")
        requests[request.place] = request
    batches = [span for span in found.spans if span.name == "batch" and set(span.links) <= requests.keys()]
    shared = [batch for batch in batches if len(batch.links) > 1]
    assert shared, "no two of 48 requests met in a batch"
    # Each request is in exactly one batch.
    assert sorted(link for batch in batches for link in batch.links) == sorted(requests)
    for batch in shared:
        assert batch.parent == ""
        assert batch.trace not in {trace for trace, _ in requests}
        assert batch.attributes["me5.batch.requests"] == batch.attributes["me5.batch.texts"] == len(batch.links)
        for link in batch.links:
            spans = found.trace(link[0])
            engine = one(spans, "engine")
            assert engine.links == [batch.place]
            assert engine.parent == link[1]
            assert engine.attributes["me5.texts"] == 1
            assert engine.attributes["me5.batch.texts"] == len(batch.links)
            assert (engine.start_ns, engine.end_ns) == (batch.start_ns, batch.end_ns)
            assert not named(spans, "batch")


def test_a_request_of_many_batches_has_spans_of_the_first_ones_alone(traced: Traced) -> None:
    _, client, found = traced
    wait_until_queue_is_empty(client)
    headers = {"x-request-id": "many", "x-me5-lane": "bulk"}
    assert client.post("/embed", json=passages(1600), headers=headers).status_code == 200
    request, spans = found.wait_for_request("many")
    assert int(request.attributes["me5.batches"]) > ENGINE_SPANS_MAX
    assert len(named(spans, "engine")) == len(named(spans, "batch")) == ENGINE_SPANS_MAX
    queue = one(spans, "queue")
    assert queue.attributes["me5.texts.never_taken"] == 0
    # Half of the texts wait longer than the mean, which is what the header has.
    assert queue.ms / 1000 > float(queue.attributes["me5.queue.mean_s"]) > 0


@pytest.mark.parametrize(
    ("body", "status", "code", "below"),
    [
        ({"inputs": "one", "input_type": "title"}, 422, "validation", []),
        ({"inputs": "many words " * 600, "truncate": False}, 422, "too_long", ["tokenise"]),
        ({"inputs": ""}, 400, "empty", []),
    ],
)
def test_a_callers_error_is_told_with_its_code(
    traced: Traced, body: dict[str, object], status: int, code: str, below: list[str]
) -> None:
    _, client, found = traced
    response = client.post("/embed", json=body, headers={"x-request-id": code})
    assert response.status_code == status
    request, spans = found.wait_for_request(code)
    assert [span.name for span in spans if span is not request] == below
    assert request.attributes["http.response.status_code"] == status
    assert request.attributes["error.type"] == code
    (event,) = request.events
    assert str(event["exception.message"]) in response.json()["error"]
    # By OpenTelemetry's conventions the server has not failed.
    assert not request.failed


def test_a_refused_request_has_its_429_and_no_queue(traced: Traced) -> None:
    gateway, client, found = traced
    wait_until_queue_is_empty(client)
    bulk = {"x-me5-lane": "bulk"}
    with ThreadPoolExecutor(1) as threads, gateway.client() as own:
        large = threads.submit(own.post, "/embed", json=passages(1500), headers=bulk)
        wait_until(lambda: total(scrape(client), "me5_queue_tokens") > 600)
        response = client.post("/embed", json=passages(64), headers={**bulk, "x-request-id": "refused"})
        assert response.status_code == 429
        assert large.result().status_code == 200
    request, spans = found.wait_for_request("refused")
    assert {span.name for span in spans} <= {"POST /embed", "tokenise"}
    assert (request.attributes["http.response.status_code"], request.attributes["error.type"]) == (429, "overloaded")


def test_a_deadline_ends_the_queue_and_not_what_runs(traced: Traced) -> None:
    gateway, client, found = traced
    wait_until_queue_is_empty(client)
    (engine,) = psutil.Process(gateway.process.pid).children()
    engine.suspend()
    try:
        for request_id in ("late-running", "late-waiting"):
            headers = {"x-request-id": request_id, "x-me5-timeout-ms": "400"}
            assert client.post("/embed", json={"inputs": "one"}, headers=headers).status_code == 504
    finally:
        engine.resume()
    requests = {name: found.wait_for_request(name) for name in ("late-running", "late-waiting")}
    for request, _ in requests.values():
        assert request.failed
        assert (request.attributes["http.response.status_code"], request.attributes["error.type"]) == (504, "deadline")
    request, spans = requests["late-waiting"]
    assert [span.name for span in spans] == ["tokenise", "queue", "POST /embed"]
    queue = one(spans, "queue")
    assert queue.attributes["me5.texts.never_taken"] == 1
    assert queue.end_ns == request.end_ns
    # The engine went on with what it had.
    request, _ = requests["late-running"]
    found.wait(lambda _: bool(named(found.trace(request.trace), "engine")))
    spans = found.trace(request.trace)
    assert one(spans, "queue").attributes["me5.texts.never_taken"] == 0
    assert one(spans, "engine").end_ns > request.end_ns
    assert not one(spans, "engine").failed


def test_a_killed_engine_is_an_error_of_the_request_its_part_and_the_batch(traced: Traced) -> None:
    gateway, client, found = traced
    wait_until_queue_is_empty(client)
    (engine,) = psutil.Process(gateway.process.pid).children()
    with ThreadPoolExecutor(1) as threads, gateway.client() as own:
        headers = {"x-request-id": "killed", "x-me5-lane": "bulk"}
        lost = threads.submit(own.post, "/embed", json=passages(1500), headers=headers)
        wait_until(lambda: total(scrape(client), "me5_queue_tokens") > 0)
        engine.kill()
        assert lost.result().status_code == 503
    request, spans = found.wait_for_request("killed")
    assert request.failed
    assert (request.attributes["http.response.status_code"], request.attributes["error.type"]) == (503, "engine_lost")
    (event,) = request.events
    assert event["exception.type"] == "EngineLost"
    broken = [span for span in spans if span.failed and span is not request]
    assert {span.name for span in broken} == {"engine", "batch"}
    assert {span.attributes["error.type"] for span in broken} == {"engine_lost"}
    assert "Traceback" not in gateway.log_text()
    # Another engine is there soon, and is traced as the first one was.
    wait_until(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/embed", json={"inputs": "again"}, headers={"x-request-id": "again"}).status_code == 200
    _, spans = found.wait_for_request("again")
    assert not any(span.failed for span in spans)
    assert named(spans, "batch")


def test_of_what_comes_unsampled_nothing_is_sent(traced: Traced) -> None:
    _, client, found = traced
    unsampled = {"traceparent": f"00-{'a' * 32}-{CALLER_SPAN}-00", "x-request-id": "unsampled"}
    assert client.post("/embed", json={"inputs": "one"}, headers=unsampled).status_code == 200
    client.post("/embed", json={"inputs": "one"}, headers={"x-request-id": "sampled"})
    found.wait_for_request("sampled")
    assert "unsampled" not in {span.attributes.get("me5.request_id") for span in found.spans}
    assert not found.trace("a" * 32)


def test_a_ratio_of_nothing_leaves_what_a_caller_samples_and_names_of_the_environment_win() -> None:
    own_names = {"OTEL_SERVICE_NAME": "search", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    with (
        receiver() as found,
        variables(QUICK | own_names),
        start_gateway(otlp_endpoint=found.url, trace_sample_ratio=0, drain_s=0) as gateway,
        gateway.client() as client,
    ):
        for _ in range(20):
            assert client.post("/embed", json={"inputs": "one"}).status_code == 200
        sampled = {"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01", "x-request-id": "asked-for"}
        client.post("/embed", json={"inputs": "one"}, headers=sampled)
        request, _ = found.wait_for_request("asked-for")
        assert {span.trace for span in found.spans} == {CALLER_TRACE}
        assert request.resource["service.name"] == "search"
        assert request.resource["deployment.environment.name"] == "test"
        assert request.resource["service.version"] == __version__


def test_a_ratio_between_samples_about_so_many() -> None:
    tracing = Tracing(f"http://127.0.0.1:{free_port()}", 0.25, model="m", model_version="1")
    begun = [
        tracing.begin("/embed", [], time.monotonic(), scheme="http", client=None, request_id="x") for _ in range(4000)
    ]
    # Five standard deviations of a binomial distribution.
    assert sum(trace is not None for trace in begun) == pytest.approx(1000, abs=5 * (4000 * 0.25 * 0.75) ** 0.5)


class Remote(InThread):
    """A host that keeps what it is told of a batch's place in a trace."""

    given: list[str | None]

    async def run(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,
        unit: bool = True,
        wide: bool = False,
        deadline: float | None = None,
        traceparent: str | None = None,
    ) -> NDArray[np.float32]:
        self.given.append(traceparent)
        return await super().run(rows, lane=lane, unit=unit, wide=wide, deadline=deadline, traceparent=traceparent)


def test_a_host_on_another_machine_is_told_the_batchs_place() -> None:
    given: list[str | None] = []

    async def open_remote(_: EngineConfig, widths: Widths) -> EngineHost:
        host = Remote(FaultyEngine(), widths.vector)
        host.name, host.given = "triton", given
        return host

    async def story(url: str) -> None:
        tracing = Tracing(url, 1.0, model="m", model_version="1")
        embedder = Embedder(Settings(model=SHIPPED_MODEL, engine="onnx"), Metrics(), open_host=open_remote)
        embedder.trace_with(tracing)
        await embedder.start()
        try:
            # The golden texts are nobody's request.
            assert set(given) == {None}
            given.clear()
            trace = tracing.begin("/embed", [], time.monotonic(), scheme="http", client=None, request_id="remote")
            assert trace is not None
            await embedder.embed(Ask(["one"], trace=trace))
            trace.end(200, time.monotonic())
            await embedder.embed(Ask(["two"]))
        finally:
            await embedder.stop()
            await tracing.close()

    with receiver() as found, variables(QUICK):
        asyncio.run(story(found.url))
        _, spans = found.wait_for_request("remote")
    batch = one(spans, "batch")
    assert batch.kind == CLIENT
    (place, none) = given
    assert none is None
    assert place is not None
    version, trace, span, flags = place.split("-")
    assert (version, trace, span) == ("00", batch.trace, batch.id)
    assert int(flags, 16) & 1
