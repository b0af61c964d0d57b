"""Clients that are slow, silent, many, or don't listen: each is told why or cut, and the others don't notice."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from gateway_process import Gateway, start_gateway
from metric_series import scrape, series, total, wait_until_queue_is_empty

from service.settings import load_settings

HEADER_TIMEOUT_S, BODY_TIMEOUT_S, WRITE_TIMEOUT_S = 0.6, 0.8, 0.8
CONNECTIONS, BUFFERED_BYTES = 40, 300_000
BODY = json.dumps({"inputs": "how deep is the harbour?"}).encode()
HEAD = b"POST /embed HTTP/1.1\r\nhost: me5\r\ncontent-length: %d\r\n\r\n"
# No test waits for a moment: whatever is to happen has this long.
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def strict() -> Iterator[Gateway]:
    """A gateway with little patience and little room."""
    with start_gateway(
        header_timeout_s=HEADER_TIMEOUT_S,
        body_timeout_s=BODY_TIMEOUT_S,
        write_timeout_s=WRITE_TIMEOUT_S,
        max_connections=CONNECTIONS,
        max_buffered_bytes=BUFFERED_BYTES,
        drain_s=0,
    ) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(strict: Gateway) -> Iterator[None]:
    """After every test: no queue, no bytes held, no task and no connection but what an idle gateway has."""
    with strict.client() as client:
        before = scrape(client)
    yield
    with strict.client() as client:
        wait_until_queue_is_empty(client)
        for name in ("me5_buffered_bytes", "me5_event_loop_tasks", "me5_open_connections"):
            assert eventually(lambda name=name: scrape(client)[series(name)] <= before[series(name)]), name  # type: ignore[misc]
    assert "Traceback" not in strict.log_text(), strict.log_text()


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether this comes true within a bounded time."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        if holds():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def connect(gateway: Gateway, receive_buffer: int = 0) -> Iterator[socket.socket]:
    """A bare connection."""
    host, port = gateway.url.removeprefix("http://").rsplit(":", 1)
    with socket.socket() as connection:
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE_S)
        connection.connect((host, int(port)))
        yield connection


def read_until_closed(connection: socket.socket) -> bytes:
    """Everything the server says before it closes; fails where it does not close."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def read_answer(connection: socket.socket) -> bytes:
    """One answer, whole: its status line comes first."""
    found = b""
    while b"\r\n\r\n" not in found:
        part = connection.recv(65536)
        assert part, found
        found += part
    head, _, body = found.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    return head


def refused_connections(gateway: Gateway, reason: str) -> float:
    """How often the gateway has cut a connection for this."""
    with gateway.client() as client:
        return scrape(client)[series("me5_refused_connections_total", reason=reason)]


def ok(gateway: Gateway) -> bool:
    """Whether a well-behaved client is served."""
    with gateway.client() as client:
        return client.post("/embed", content=BODY).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /emb", b"POST /embed HTTP/1.1\r\nhost: me5\r\nx-slow: a", b"\r\n\r\n"],
    ids=["nothing", "half a line", "half a header", "empty lines"],
)
def test_a_connection_without_complete_headers_gets_408_and_is_closed(strict: Gateway, sent: bytes) -> None:
    before = refused_connections(strict, "header_timeout")
    with connect(strict) as connection:
        connection.sendall(sent)
        answer = read_until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"connection: close" in answer
    assert b"ME5_HEADER_TIMEOUT_S" in answer
    assert refused_connections(strict, "header_timeout") == before + 1


def test_headers_that_trickle_in_get_no_more_time_than_others(strict: Gateway) -> None:
    with connect(strict) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\n")
        for number in range(200):
            try:
                connection.sendall(b"x-%d: a\r\n" % number)
            except OSError:
                break
            time.sleep(HEADER_TIMEOUT_S / 10)
        else:
            pytest.fail("the server read headers for 20 times its limit")


def test_a_second_request_has_to_come_whole_as_well(strict: Gateway) -> None:
    with connect(strict) as connection:
        connection.sendall(HEAD % len(BODY) + BODY)
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"POST /embed HT")
        assert b"HTTP/1.1 408" in read_until_closed(connection)


def test_an_idle_connection_is_kept_longer_than_the_time_for_headers(strict: Gateway) -> None:
    with connect(strict) as connection:
        for _ in range(2):
            connection.sendall(HEAD % len(BODY) + BODY)
            assert read_answer(connection).startswith(b"HTTP/1.1 200")
            time.sleep(2 * HEADER_TIMEOUT_S)


@pytest.mark.parametrize("drops", [False, True], ids=["it stops", "it trickles"])
def test_a_body_that_does_not_arrive_gets_408_and_the_connection_is_closed(strict: Gateway, drops: bool) -> None:
    with connect(strict) as connection:
        connection.sendall(HEAD % 5000 + b'{"inputs": "')
        for _ in range(8 if drops else 0):
            connection.sendall(b"a")
            time.sleep(BODY_TIMEOUT_S / 10)
        answer = read_until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"ME5_BODY_TIMEOUT_S" in answer
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    "headers", [b"x-long: " + b"a" * 100_000, b"\r\n".join(b"x-%d: many" % number for number in range(9000))]
)
@pytest.mark.parametrize("ends", [b"\r\n\r\n", b""], ids=["complete", "still sending"])
def test_headers_that_are_too_large_get_431(strict: Gateway, headers: bytes, ends: bytes) -> None:
    before = refused_connections(strict, "headers_too_large")
    with connect(strict) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: me5\r\n" + headers + ends)
        answer = read_until_closed(connection)
    # The client may see a reset instead, when the rest of its headers meets a closed connection.
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    assert refused_connections(strict, "headers_too_large") == before + 1


def test_connections_over_the_limit_get_503_and_probes_are_answered(strict: Gateway) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(connect(strict))
            connection.sendall(HEAD % len(BODY) + BODY)
            assert read_answer(connection).startswith(b"HTTP/1.1 200")
        with strict.client() as client:
            answer = client.post("/embed", content=BODY)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
            assert "ME5_MAX_CONNECTIONS" in answer.json()["error"]
            answer = client.post("/v1/embeddings", json={"input": "a"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_connections")
            for path in ("/livez", "/readyz", "/health", "/metrics"):
                assert client.get(path).status_code == 200
    assert eventually(lambda: ok(strict))


def test_bodies_beyond_what_may_be_held_get_429_with_a_retry_after_and_the_first_is_answered(strict: Gateway) -> None:
    large = json.dumps({"inputs": "ok", "note": "a" * 200_000}).encode()
    with connect(strict) as first:
        # All but its end, so that it is held as long as this test likes, within the time for bodies.
        first.sendall(HEAD % len(large) + large[:-1])
        with strict.client() as client:
            assert eventually(lambda: scrape(client)[series("me5_buffered_bytes")] >= 190_000)
            refused = client.post("/embed", content=large)
            first.sendall(large[-1:])
            answer = read_answer(first)
            assert refused.status_code == 429, refused.text
            assert int(refused.headers["retry-after"]) >= 1
            assert "ME5_MAX_BUFFERED_BYTES" in refused.json()["error"]
            assert answer.startswith(b"HTTP/1.1 200")
            assert client.post("/embed", content=large).status_code == 200


def test_one_body_larger_than_what_may_be_held_is_read_while_nothing_else_is(strict: Gateway) -> None:
    with strict.client() as client:
        body = json.dumps({"inputs": "ok", "note": "a" * 2 * BUFFERED_BYTES}).encode()
        assert client.post("/embed", content=body).status_code == 200


def test_a_client_that_does_not_read_its_answer_is_cut(strict: Gateway) -> None:
    before = refused_connections(strict, "not_reading")
    texts = json.dumps({"inputs": [f"{number} ships" for number in range(1500)]}).encode()
    # Several answers of megabytes: more than the kernel's buffers on both sides take.
    with connect(strict, receive_buffer=4096) as connection:
        connection.sendall((HEAD % len(texts) + texts) * 3)
        assert eventually(lambda: refused_connections(strict, "not_reading") == before + 1)
        assert ok(strict)


def test_a_compressed_body_is_refused_before_it_is_read(strict: Gateway) -> None:
    with connect(strict) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\ncontent-encoding: gzip\r\ncontent-length: 9000000\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 415")


def test_a_client_that_asks_first_is_refused_without_its_body(strict: Gateway) -> None:
    head = b"POST /embed HTTP/1.1\r\ncontent-encoding: gzip\r\nexpect: 100-continue\r\ncontent-length: 9000000\r\n\r\n"
    with connect(strict) as connection:
        connection.sendall(head)
        # Not "100 Continue" before it.
        assert read_answer(connection).startswith(b"HTTP/1.1 415")


def test_a_body_beyond_the_limit_that_then_stalls_is_told_its_size_and_not_its_slowness(strict: Gateway) -> None:
    limit = load_settings({}).max_body_bytes
    chunk = b"%x\r\n" % (limit + 1) + bytes(limit + 1) + b"\r\n"
    with connect(strict) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunk)
        assert read_answer(connection).startswith(b"HTTP/1.1 413")


def test_a_thousand_clients_that_leave_at_once_leave_nothing_behind(gateway: Gateway, client: httpx.Client) -> None:
    wait_until_queue_is_empty(client)
    before = scrape(client)
    body = json.dumps({"inputs": ["how deep is the harbour?"] * 4, "input_type": "passage"}).encode()
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(gateway)).sendall(HEAD % len(body) + body)
    wait_until_queue_is_empty(client)
    for name in ("me5_event_loop_tasks", "me5_open_connections", "me5_buffered_bytes"):
        assert eventually(lambda name=name: scrape(client)[series(name)] <= before[series(name)]), name  # type: ignore[misc]
    after = scrape(client)
    assert total(after, "me5_queue_requests") == total(after, "me5_queue_tokens") == 0
    assert client.post("/embed", content=BODY).status_code == 200
    assert "Traceback" not in gateway.log_text()
