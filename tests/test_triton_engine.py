"""The gateway in front of real Tritons: answers as those of an engine of its own, and no request lost to a fault."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from faulty_engine import SHIPPED
from gateway_process import MODEL_REPO, Gateway, start_gateway, wait_until_ready
from metric_series import scrape
from steady_load import steady_load
from triton_server import TritonServer, needs_triton, start_triton

pytestmark = needs_triton

MODEL = "me5_nano"
LONG = "Der Fernsehturm ist 368 Meter hoch. " * 200
# The truth is known within two seconds on a machine that is not busy with something else; tests share theirs.
SOON_S = 15.0


@pytest.fixture(scope="module")
def triton() -> Iterator[TritonServer]:
    with start_triton(MODEL_REPO, model=MODEL) as server:
        yield server


@pytest.fixture(scope="module")
def second() -> Iterator[TritonServer]:
    with start_triton(MODEL_REPO, model=MODEL, address="127.0.0.2") as server:
        yield server


@pytest.fixture(scope="module")
def gateway(triton: TritonServer) -> Iterator[Gateway]:
    with start_gateway(engine="triton", triton_urls=triton.grpc_url) as started:
        yield started


@pytest.fixture(scope="module")
def embedded() -> Iterator[Gateway]:
    with start_gateway(engine="onnx", precision="fp32") as started:
        yield started


@pytest.fixture(scope="module")
def pair(triton: TritonServer, second: TritonServer) -> Iterator[Gateway]:
    """A gateway with two Tritons."""
    with start_gateway(engine="triton", triton_urls=f"{triton.grpc_url},{second.grpc_url}") as started:
        wait_for(lambda: ready_upstreams(started) == 2)
        yield started


def wait_for(condition: Callable[[], bool], within_s: float = SOON_S) -> float:
    """Seconds until it held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, "it never came"
        time.sleep(0.02)
    return time.monotonic() - began


def value_of(gateway: Gateway, name: str, **labels: str) -> float:
    """The sum of a metric's series with these labels."""
    with gateway.client() as client:
        found = scrape(client)
    return sum(value for (each, given), value in found.items() if each == name and set(labels.items()) <= given)


def ready_upstreams(gateway: Gateway) -> int:
    return int(value_of(gateway, "me5_upstream_ready"))


def status_of(gateway: Gateway) -> int:
    return httpx.get(f"{gateway.url}/readyz", timeout=30).status_code


ASKED: list[tuple[str, dict[str, object], dict[str, str]]] = [
    ("/embed", {"inputs": "去机场的火车几点开？"}, {}),
    ("/embed", {"inputs": ["query: hello", "passage: Der Turm ist hoch."], "input_type": "passage"}, {}),
    ("/embed", {"inputs": [LONG, "short", "ein etwas längerer Satz, der in ein anderes Fach gehört " * 3]}, {}),
    ("/embed", {"inputs": LONG, "truncate": False}, {}),
    ("/embed", {"inputs": ["fine", ""]}, {}),
    ("/embed", {"inputs": ["a", "b"], "normalize": False}, {}),
    ("/embed", {"inputs": ["a", "b"], "dimensions": 64}, {}),
    ("/embed", {"inputs": ["a", "b"], "output_dtype": "float16"}, {"accept": "application/octet-stream"}),
    ("/embed", {"inputs": [f"text {number}" for number in range(70)], "input_type": "passage"}, {}),
    ("/v1/embeddings", {"model": "me5_nano-passage", "input": ["one", LONG]}, {}),
    ("/v1/embeddings", {"model": "me5_nano", "input": "one", "encoding_format": "base64"}, {}),
    ("/similarity", {"inputs": {"source_sentence": "one", "sentences": ["two", "three"]}}, {}),
    ("/tokenize", {"inputs": "How tall is the tower?"}, {}),
]


def vectors_in(route: str, asked: dict[str, object], answer: httpx.Response) -> np.ndarray:
    """Whatever numbers an answer holds, as rows."""
    if answer.headers["content-type"] == "application/octet-stream":
        rows = json.loads(answer.headers["x-me5-shape"]) if answer.headers["x-me5-shape"].startswith("[") else None
        found = np.frombuffer(answer.content, "<f2").astype(np.float32)
        return found.reshape(rows or (2, -1))
    if route == "/v1/embeddings":
        rows = [row["embedding"] for row in answer.json()["data"]]
        if asked.get("encoding_format") == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        return np.array(rows)
    return np.atleast_2d(np.array(answer.json(), dtype=float))


def shape_of(found: object) -> object:
    """JSON without its numbers: names, types and lengths."""
    if isinstance(found, dict):
        return {name: shape_of(value) for name, value in found.items()}
    if isinstance(found, list):
        return [shape_of(value) for value in found]
    return type(found).__name__ if isinstance(found, float) else found


@pytest.mark.parametrize(("route", "asked", "headers"), ASKED, ids=[f"{n}{each[0]}" for n, each in enumerate(ASKED)])
def test_a_client_sees_no_difference_to_an_engine_of_the_gateways_own(
    gateway: Gateway, embedded: Gateway, route: str, asked: dict[str, object], headers: dict[str, str]
) -> None:
    one, other = (httpx.post(each.url + route, json=asked, headers=headers, timeout=60) for each in (gateway, embedded))
    assert one.status_code == other.status_code
    assert list(one.headers) == list(other.headers)
    for name in ("x-compute-tokens", "x-compute-characters", "x-me5-truncated", "x-me5-role", "x-me5-lane"):
        assert one.headers.get(name) == other.headers.get(name)
    if one.status_code == 200 and route in ("/embed", "/v1/embeddings"):
        found, wanted = (vectors_in(route, asked, each) for each in (one, other))
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        assert ((found * wanted).sum(axis=1) / lengths).min() >= 0.99999
        assert np.allclose(np.linalg.norm(found, axis=1), np.linalg.norm(wanted, axis=1), atol=1e-3)
    elif route == "/similarity":
        assert np.allclose(one.json(), other.json(), atol=1e-4)
    if one.headers["content-type"] == "application/json" and asked.get("encoding_format") != "base64":
        assert shape_of(one.json()) == shape_of(other.json())


def test_requests_of_many_clients_are_computed_together(gateway: Gateway, triton: TritonServer) -> None:
    before = triton.statistics(MODEL)
    triton.set_delay(20)
    try:
        with ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(post, gateway, f"question number {number}") for number in range(200)]
        assert {answer.result().status_code for answer in asked} == {200}
    finally:
        triton.set_delay(0)
    after = triton.statistics(MODEL)
    texts, runs = (after[name] - before[name] for name in ("inference_count", "execution_count"))
    requests = after["success_count"] - before["success_count"]
    assert texts == 200
    # Some joining is the gateway's (fewer requests than texts), and some Triton's (fewer runs than requests).
    assert runs < requests <= texts


def post(gateway: Gateway, text: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{gateway.url}/embed", json={"inputs": text}, headers=named, timeout=60)


def test_a_deadline_ends_the_work_in_triton_too(gateway: Gateway, triton: TritonServer) -> None:
    def given_up() -> float:
        counts = [value_of(gateway, "me5_upstream_batches_total", outcome=name) for name in ("cancelled", "deadline")]
        return sum(counts)

    before, given_up_before = value_of(gateway, "me5_upstream_batches_total", outcome="ok"), given_up()
    triton.set_delay(400)
    try:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(post, gateway, f"slow {n}", x_me5_timeout_ms="150") for n in range(8)]
        # Some may be refused at once, for what can't be done in time.
        statuses = {answer.result().status_code for answer in asked}
        assert 504 in statuses
        assert statuses <= {504, 429}
        wait_for(lambda: value_of(gateway, "me5_upstream_in_flight") == 0)
    finally:
        triton.set_delay(0)
    # Given up by us or by Triton's queue, whoever was first; nothing was computed for nobody to read.
    assert given_up() > given_up_before
    assert value_of(gateway, "me5_upstream_batches_total", outcome="ok") == before
    assert post(gateway, "at leisure").status_code == 200


def test_a_client_that_leaves_takes_its_batch_along(gateway: Gateway, triton: TritonServer) -> None:
    before = value_of(gateway, "me5_upstream_batches_total", outcome="cancelled")
    triton.set_delay(1500)
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/embed", json={"inputs": "never mind"}, timeout=0.4)
        wait_for(lambda: value_of(gateway, "me5_upstream_batches_total", outcome="cancelled") > before)
        assert value_of(gateway, "me5_upstream_in_flight") == 0
    finally:
        triton.set_delay(0)
    wait_for(lambda: post(gateway, "again").status_code == 200)


def test_a_full_queue_of_triton_is_an_overload_that_the_gateway_counts(triton: TritonServer, gateway: Gateway) -> None:
    config = httpx.get(f"{triton.http_url}/v2/models/{MODEL}/config", timeout=30).json()
    config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] = 2
    config["dynamic_batching"]["preferred_batch_size"] = [1]
    triton.load(MODEL, config=json.dumps(config))
    triton.set_delay(300)
    try:
        wait_for(lambda: status_of(gateway) == 200)
        with ThreadPoolExecutor(32) as pool:
            asked = [pool.submit(post, gateway, f"one of many {number}") for number in range(32)]
        answers = [each.result() for each in asked]
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}, statuses
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error_type"] == "Overloaded"
        assert value_of(gateway, "me5_upstream_batches_total", outcome="rejected") > 0
    finally:
        triton.set_delay(0)
        triton.unload(MODEL)
        triton.load(MODEL)
    wait_for(lambda: status_of(gateway) == 200)


def test_readiness_follows_the_model_not_the_server(gateway: Gateway, triton: TritonServer) -> None:
    triton.unload(MODEL)
    red_s = wait_for(lambda: status_of(gateway) == 503)
    assert httpx.get(f"{triton.http_url}/v2/health/live", timeout=30).status_code == 200
    answer = post(gateway, "is there anybody?")
    assert (answer.status_code, answer.json()["error_type"]) == (503, "Unhealthy")
    triton.load(MODEL)
    green_s = wait_for(lambda: status_of(gateway) == 200)
    print(f"red {red_s:.2f} s after an unload, green {green_s:.2f} s after a load")
    assert post(gateway, "is there anybody?").status_code == 200


def test_a_triton_whose_backend_died_is_not_believed_to_be_ready(gateway: Gateway, triton: TritonServer) -> None:
    stubs = triton.stub_pids()
    assert stubs
    for pid in stubs:
        os.kill(pid, signal.SIGKILL)
    answers = [post(gateway, f"to a dead stub {number}").status_code for number in range(3)]
    assert set(answers) <= {200, 503}
    try:
        # Triton itself goes on calling the model ready; the golden texts are what is believed.
        wait_for(lambda: status_of(gateway) == 503)
        assert triton.model_ready(MODEL)
        triton.unload(MODEL)
    finally:
        triton.load(MODEL)
    wait_for(lambda: status_of(gateway) == 200)
    assert post(gateway, "back").status_code == 200


def test_one_triton_of_two_dies_and_returns_and_no_request_fails(pair: Gateway, second: TritonServer) -> None:
    with steady_load(pair.url) as load:
        second.kill()
        lost_s = wait_for(lambda: ready_upstreams(pair) == 1)
        load.wait_for_more(30)
        assert status_of(pair) == 200
        second.start()
        back_s = wait_for(lambda: ready_upstreams(pair) == 2)
        before = value_of(pair, "me5_upstream_batches_total", upstream=second.grpc_url, outcome="ok")
        load.wait_for_more(30)
    assert set(load.statuses) == {200}, load.failures
    assert value_of(pair, "me5_upstream_batches_total", upstream=second.grpc_url, outcome="ok") > before
    print(f"{load.answered} requests; known to be lost after {lost_s:.2f} s, back after {back_s:.2f} s")


def test_a_triton_that_hangs_costs_no_request_either(pair: Gateway, second: TritonServer) -> None:
    with steady_load(pair.url) as load:
        second.pause()
        try:
            wait_for(lambda: ready_upstreams(pair) == 1)
            load.wait_for_more(30)
        finally:
            second.resume()
        wait_for(lambda: ready_upstreams(pair) == 2)
        load.wait_for_more(10)
    assert set(load.statuses) == {200}, load.failures


def test_tritons_are_restarted_one_after_another_and_no_request_fails(
    pair: Gateway, triton: TritonServer, second: TritonServer
) -> None:
    with steady_load(pair.url) as load:
        for server in (triton, second):
            server.restart()
            wait_for(lambda: ready_upstreams(pair) == 2)
            load.wait_for_more(10)
    assert set(load.statuses) == {200}, load.failures


def test_gateways_are_restarted_one_after_another_and_no_request_fails(triton: TritonServer) -> None:
    settings: dict[str, object] = {"engine": "triton", "triton_urls": triton.grpc_url, "drain_s": 5}
    with ExitStack() as stack:
        serving = [stack.enter_context(start_gateway(**settings)) for _ in range(2)]
        turn = iter(range(10**9))

        def ready_one() -> str:
            # What a Service does: requests go to those whose probe is green, asked at each request here.
            for _ in range(1000):
                each = serving[next(turn) % len(serving)]
                try:
                    if httpx.get(f"{each.url}/readyz", timeout=30).status_code == 200:
                        return each.url
                except httpx.TransportError:
                    continue
            raise AssertionError("no gateway is ready")

        with steady_load(ready_one) as load:
            for place in range(2):
                old, fresh = serving[place], stack.enter_context(start_gateway(**settings))
                serving[place] = fresh
                assert old.terminate() == 0
                load.wait_for_more(10)
        assert set(load.statuses) == {200}, load.failures


def test_the_only_triton_stops_and_starts_and_every_request_is_answered(gateway: Gateway, triton: TritonServer) -> None:
    with steady_load(gateway.url) as load:
        triton.stop()
        red_s = wait_for(lambda: status_of(gateway) == 503)
        triton.start()
        green_s = wait_for(lambda: status_of(gateway) == 200)
        load.wait_for_more(10)
    assert set(load.statuses) <= {200, 503}, load.failures
    assert load.longest_s < 30
    print(f"red {red_s:.2f} s after its end, green {green_s:.2f} s after it was ready; {dict(load.statuses)}")


def test_a_gateway_waits_for_a_triton_that_is_not_there_yet_and_for_one_with_the_right_weights(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "repo"
    shutil.copytree(MODEL_REPO / MODEL, repository / MODEL)
    graph = repository / MODEL / SHIPPED.name / "model.onnx"
    right = graph.read_bytes()
    weights = max((tensor.raw_data for tensor in onnx.load(graph).graph.initializer), key=len)
    graph.write_bytes(right.replace(weights, bytes(len(weights))))
    with start_triton(repository, model=MODEL) as server:
        server.kill()
        with start_gateway(engine="triton", triton_urls=server.grpc_url, status=503) as waiting:
            assert post(waiting, "too early").status_code == 503
            assert httpx.get(f"{waiting.url}/livez", timeout=30).status_code == 200
            server.start()
            wait_for(lambda: "has cosine" in waiting.log_text())
            assert status_of(waiting) == 503
            server.unload(MODEL)
            graph.write_bytes(right)
            server.load(MODEL)
            wait_until_ready(waiting)
            assert post(waiting, "at last").status_code == 200
