"""A gateway over time: load, overload, deadlines, clients that leave, memory, and its end."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import psutil
import pytest
from gateway_process import Gateway, run_service, start_gateway
from metric_series import scrape, series, total, wait_until_queue_is_empty

# `make soak` sends many more.
MEMORY_REQUESTS = int(os.environ.get("ME5_TEST_REQUESTS", "1500"))
WORDS = (
    "the",
    "harbour",
    "of",
    "Rotterdam",
    "lies",
    "where",
    "the",
    "Rhine",
    "meets",
    "the",
    "sea",
    "and",
    "ships",
    "call",
)


def passages(count: int, words: int = 12) -> list[str]:
    """Different texts of about this many words."""
    return [f"{index}: " + " ".join(WORDS[(index + at) % len(WORDS)] for at in range(words)) for index in range(count)]


def bulk(count: int, words: int = 12) -> dict[str, object]:
    """The body of an indexing request."""
    return {"inputs": passages(count, words), "input_type": "passage"}


def send(gateway: Gateway, body: dict[str, object], headers: dict[str, str] | None = None) -> httpx.Response:
    """POST /embed on a connection of its own."""
    with gateway.client() as own:
        return own.post("/embed", json=body, headers=headers)


def queued_tokens(gateway: Gateway) -> float:
    """Tokens that wait, both lanes together."""
    with gateway.client() as own:
        return total(scrape(own), "me5_queue_tokens")


def eventually(holds: Callable[[], bool], max_s: float = 30.0) -> bool:
    """Whether this comes true within a bounded time."""
    give_up = time.monotonic() + max_s
    while time.monotonic() < give_up:
        if holds():
            return True
        time.sleep(0.01)
    return False


@contextmanager
def in_background(gateway: Gateway, bodies: list[dict[str, object]]) -> Iterator[list[Future[httpx.Response]]]:
    """These requests, all at once, each on a connection of its own; left once the last is answered."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        yield [pool.submit(send, gateway, body) for body in bodies]


def test_sigterm_under_load_turns_readiness_red_first_and_answers_all_it_has_accepted() -> None:
    with start_gateway(drain_s=0.5, max_queued_tokens=1_000_000) as gateway, gateway.client() as client:
        # The first is slower than all others: the engine prepares itself for what it meets.
        for _ in range(2):
            started = time.monotonic()
            assert send(gateway, bulk(256)).status_code == 200
            one_s = time.monotonic() - started
        # Work for some seconds, so that the port closes in the middle of it.
        count = max(4, min(60, math.ceil(3.0 / one_s)))
        with in_background(gateway, [bulk(256)] * count) as answers:

            def taken_in() -> int:
                return total(scrape(client), "me5_queue_requests") + sum(answer.done() for answer in answers)

            assert eventually(lambda: taken_in() >= count - 1)
            gateway.process.send_signal(signal.SIGTERM)
            seen: list[int | None] = []

            def port_closed() -> bool:
                try:
                    seen.append(httpx.get(f"{gateway.url}/readyz", timeout=5).status_code)
                except httpx.TransportError:
                    seen.append(None)
                return seen[-1] is None

            assert eventually(port_closed)
            waiting = sum(not answer.done() for answer in answers)
        # Green at most until the signal has arrived, then red on an open port, then closed.
        assert seen[-2] == 503
        assert seen == sorted(seen, key=lambda status: status or 1000)
        assert waiting > 0
        assert {answer.result().status_code for answer in answers} == {200}
        assert gateway.process.wait(30) == 0


def test_a_request_during_the_drain_is_still_answered_and_a_quiet_gateway_ends_soon() -> None:
    with start_gateway(drain_s=0.5) as gateway, gateway.client() as client:
        started = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: client.get("/readyz").status_code == 503)
        assert "draining" in client.get("/readyz").json()["reason"]
        assert client.get("/health").json() == {"error": "unhealthy", "error_type": "Unhealthy"}
        assert client.get("/livez").status_code == 200
        assert client.post("/embed", json={"inputs": "ok"}).status_code == 200
        assert gateway.process.wait(30) == 0
        # Not the 30 s that requests would be waited for.
        assert time.monotonic() - started < 10


def test_a_second_sigterm_skips_the_drain() -> None:
    with start_gateway(drain_s=60) as gateway:
        gateway.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: "draining" in gateway.log_text())
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(20) == 0


def test_a_port_that_is_taken_is_told_in_one_line(gateway: Gateway) -> None:
    port = gateway.url.rsplit(":", 1)[1]
    finished = run_service("serve", port=port)
    assert finished.returncode == 2
    (line,) = finished.stderr.decode().splitlines()
    assert line.startswith(f"me5: can't listen on ME5_HOST=127.0.0.1, ME5_PORT={port}: Address already in use")


def test_requests_that_outlast_the_shutdown_get_an_answer() -> None:
    with start_gateway(drain_s=0, shutdown_s=0.5) as gateway, ThreadPoolExecutor(1) as threads:
        pending = threads.submit(send, gateway, bulk(2000, words=30))
        assert eventually(lambda: queued_tokens(gateway) > 0)
        gateway.process.send_signal(signal.SIGTERM)
        answer = pending.result()
        assert answer.status_code in (200, 503)
        if answer.status_code == 503:
            assert "shutting down" in answer.json()["error"]
        assert gateway.process.wait(20) == 0


def test_a_deadline_of_a_few_milliseconds_gives_504_and_the_next_request_is_served(
    gateway: Gateway, client: httpx.Client
) -> None:
    counter = series("me5_rejected_requests_total", reason="deadline")
    before = scrape(client)[counter]
    started = time.monotonic()
    response = send(gateway, bulk(400), {"x-me5-timeout-ms": "5"})
    spent_s = time.monotonic() - started
    assert response.status_code == 504
    assert response.json()["error_type"] == "Overloaded"
    for word in ("deadline", "of 400 texts", "x-me5-timeout-ms", "ME5_DEADLINE_S"):
        assert word in response.json()["error"]
    assert client.post("/embed", json={"inputs": "ok"}).status_code == 200
    assert scrape(client)[counter] - before == 1
    wait_until_queue_is_empty(client)
    # What the deadline cut off costs no engine time: the whole request takes much longer.
    started = time.monotonic()
    assert send(gateway, bulk(400)).status_code == 200
    assert spent_s < 0.7 * (time.monotonic() - started)


def test_clients_that_leave_empty_the_queue_and_the_others_are_served(gateway: Gateway, client: httpx.Client) -> None:
    host, port = gateway.url.removeprefix("http://").rsplit(":", 1)
    body = json.dumps(bulk(16)).encode()
    head = f"POST /embed HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    counter = series("me5_rejected_requests_total", reason="abandoned")
    before = scrape(client)[counter]
    leaving = [socket.create_connection((host, int(port))) for _ in range(100)]
    # A second of work and more on any machine: even where a scrape has to wait, the next one finds it.
    with in_background(gateway, [bulk(2000, words=30)]) as (long_one,):
        assert eventually(lambda: long_one.done() or total(scrape(client), "me5_queue_requests") >= 1)
        assert not long_one.done(), long_one.result().text[:500]
        for connection in leaving:
            connection.sendall(head + body)
        assert eventually(lambda: total(scrape(client), "me5_queue_requests") > 20)
        for connection in leaving:
            connection.close()
        assert client.post("/embed", json={"inputs": "a query in between"}).status_code == 200
    assert long_one.result().status_code == 200
    wait_until_queue_is_empty(client)
    assert scrape(client)[counter] > before
    assert client.post("/embed", json={"inputs": "ok"}).status_code == 200
    assert "Traceback" not in gateway.log_text()


def test_an_overloaded_gateway_says_when_to_come_back_and_takes_one_large_request_when_idle() -> None:
    limit = 600
    with start_gateway(max_queued_tokens=limit, drain_s=0) as gateway, gateway.client() as client:
        large = send(gateway, bulk(100))
        assert large.status_code == 200
        assert int(large.headers["x-compute-tokens"]) > 2 * limit
        with in_background(gateway, [bulk(30)] * 12) as futures:
            pass
        answers = [future.result() for future in futures]
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.json()["error"].startswith("Model is overloaded")
                assert str(limit) in answer.json()["error"]
                assert answer.json()["error_type"] == "Overloaded"
        refused = sum(answer.status_code == 429 for answer in answers)
        assert scrape(client)[series("me5_rejected_requests_total", reason="overloaded")] == refused

        # OpenAI's client: its own error class, and a later try that succeeds.
        # The client first: making one takes time, in which the queue would empty.
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as sdk, in_background(gateway, [bulk(1500)]):
            assert eventually(lambda: total(scrape(client), "me5_queue_tokens") > limit)
            with pytest.raises(openai.RateLimitError, match="overloaded") as caught:
                sdk.with_options(max_retries=0).embeddings.create(model="x", input=passages(64))
            assert caught.value.type == "rate_limit_error"
            assert client.get("/readyz").status_code == 200
        wait_until_queue_is_empty(client)
        assert client.post("/embed", json={"inputs": "ok"}).status_code == 200


def test_a_query_overtakes_a_bulk_job(gateway: Gateway, client: httpx.Client) -> None:
    wait_until_queue_is_empty(client)
    started = time.monotonic()
    waited: list[float] = []
    with in_background(gateway, [bulk(64)] * 40) as answers:
        assert eventually(lambda: total(scrape(client), "me5_queue_requests") >= 15)
        for index in range(5):
            asked = time.monotonic()
            response = client.post("/embed", json={"inputs": f"how deep is the harbour, {index}?"})
            waited.append(time.monotonic() - asked)
            assert response.headers["x-me5-lane"] == "interactive"
        left = sum(not answer.done() for answer in answers)
    bulk_s = time.monotonic() - started
    assert {answer.result().status_code for answer in answers} == {200}
    assert left > 0
    # A query waits for the batch that is running, and one of the bulk job's many is a small part of it.
    assert statistics.median(waited) < bulk_s / 5


def test_bulk_work_is_not_starved_by_queries(gateway: Gateway, client: httpx.Client) -> None:
    wait_until_queue_is_empty(client)
    over = threading.Event()
    interactive = series("me5_queue_requests", lane="interactive")
    # Three of these fill a batch and eight are under way, so queries wait at every moment.
    queries = {"inputs": ["how deep is the harbour?"] * 40}

    def ask() -> int:
        count = 0
        with gateway.client() as own:
            while not over.is_set():
                assert own.post("/embed", json=queries, headers={"x-me5-lane": "interactive"}).status_code == 200
                count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        askers = [pool.submit(ask) for _ in range(8)]
        try:
            assert eventually(lambda: scrape(client)[interactive] >= 4)
            assert send(gateway, bulk(64), {"x-me5-timeout-ms": "15000"}).status_code == 200
            # Queries all the while, not only afterwards.
            assert eventually(lambda: scrape(client)[interactive] >= 4)
        finally:
            over.set()
        assert all(asker.result() > 0 for asker in askers)


@pytest.mark.slow
@pytest.mark.timeout(300 + MEMORY_REQUESTS // 10)
def test_memory_stays_flat_over_mixed_requests(gateway: Gateway, client: httpx.Client) -> None:
    process = psutil.Process(gateway.process.pid)
    requests: list[tuple[str, dict[str, object], dict[str, str]]] = [
        ("/embed", {"inputs": "how deep is the harbour?"}, {}),
        ("/embed", bulk(5), {}),
        ("/v1/embeddings", {"input": passages(2), "encoding_format": "base64"}, {}),
        ("/embed", {"inputs": ["a", ""]}, {}),
        ("/tokenize", {"inputs": passages(4)}, {}),
        ("/embed", bulk(40), {"x-me5-timeout-ms": "1"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": passages(2)}}, {}),
        ("/embed", {"inputs": "a text", "dimensions": 99999}, {}),
        ("/nope", {}, {}),
    ]
    longest: tuple[str, dict[str, object], dict[str, str]] = ("/embed", {"inputs": "many words " * 400}, {})

    def mixed(numbers: range) -> None:
        with gateway.client() as own:
            for number in numbers:
                path, body, headers = longest if number % 50 == 0 else requests[number % len(requests)]
                assert own.post(path, json=body, headers=headers).status_code in (200, 400, 404, 422, 429, 504)

    def resident_after(count: int) -> int:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(mixed, [range(start, count, 4) for start in range(4)]))
        wait_until_queue_is_empty(client)
        return int(process.memory_info().rss)

    # The engine's buffers get as large as the largest batch there can be; the allocators' pools follow in steps.
    assert send(gateway, {"inputs": ["many words " * 400] * 8}).status_code == 200
    warm = resident_after(max(300, MEMORY_REQUESTS // 10))
    files, threads = process.num_fds(), process.num_threads()
    half, whole = resident_after(MEMORY_REQUESTS // 2), resident_after(MEMORY_REQUESTS // 2)
    sizes = ", ".join(f"{size / 2**20:.0f}" for size in (warm, half, whole))
    print(f"\nresident MiB warm, after half, after all of {MEMORY_REQUESTS} requests: {sizes}")
    # A pool may grow by one more step in either half; a leak grows in both.
    assert min(half - warm, whole - half) < 0.04 * warm
    assert whole < 1.4 * warm
    assert process.num_threads() <= threads + 2
    assert eventually(lambda: process.num_fds() <= files + 8)
