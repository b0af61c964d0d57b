"""Rude, slow and vanishing clients, beside others that are served all the while."""

from __future__ import annotations

import json
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable

import psutil
from episode import PATIENCE_S, Episode, watched
from evidence import GREEN
from faulty import BODY_TIMEOUT_S, HEADER_TIMEOUT_S, WRITE_TIMEOUT_S, Faulty, Saw
from gateway_process import Gateway
from metric_series import Series, scrape, series, wait_until_queue_is_empty


def connect(gateway: Gateway, count: int) -> list[socket.socket]:
    """So many connections."""
    host, port = gateway.url.removeprefix("http://").rsplit(":", 1)
    return [socket.create_connection((host, int(port)), timeout=PATIENCE_S) for _ in range(count)]


def request(body: bytes, *headers: str, path: str = "/embed") -> bytes:
    """A request as it goes over the wire."""
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode("ascii") + body


def read_all(connections: list[socket.socket]) -> Counter[int]:
    """What each was answered before it was closed: status → count, 0 for nothing."""
    found: Counter[int] = Counter()
    for connection in connections:
        try:
            answer = b"".join(iter(lambda connection=connection: connection.recv(65536), b""))
        except ConnectionError:
            answer = b""
        found[int(answer.split(b" ", 2)[1]) if answer else 0] += 1
        connection.close()
    return found


def undisturbed(
    faulty: Faulty, rude: Callable[[Episode], Counter[int]], saw: Saw, *, counter: Series, shown: str, culprits: str
) -> Counter[int]:
    """Let clients be rude under load: everybody else is served, readiness stays green, and nothing is left behind.

    rude: returns what the rude ones got.   counter: what has to count them.   culprits: what happens to them, in words.
    """
    gateway = faulty.gateway
    process = psutil.Process(gateway.process.pid)
    with gateway.client() as client:
        wait_until_queue_is_empty(client)
        before, log_before = scrape(client), len(gateway.log_text())
        files = process.num_fds()
        with watched(gateway, clients=4) as episode:
            at = time.monotonic()
            got = rude(episode)
            until = time.monotonic()
            episode.answered_after(until)
        wait_until_queue_is_empty(client)
        counted = scrape(client)[counter] - before[counter]
    others = episode.statuses(at, until)
    assert set(others) == {200}
    assert episode.red_at(at) is None
    assert counted > 0
    assert "Traceback" not in gateway.log_text()[log_before:]
    episode.wait_for(lambda: process.num_fds() <= files + 20, "closed connections")
    saw(
        requests={200: others[200]},
        red_after_s=GREEN,
        log="",
        metric=shown,
        back=f"the others notice nothing; the culprits {culprits}",
    )
    return got


def test_a_thousand_clients_disconnect_at_once(faulty: Faulty, saw: Saw) -> None:
    body = json.dumps({"inputs": [f"passage: the ships that call, {number}" for number in range(16)]}).encode()

    def rude(episode: Episode) -> Counter[int]:
        leaving = connect(episode.gateway, 1000)
        for connection in leaving:
            connection.sendall(request(body))
        for connection in leaving:
            # A reset and not a goodbye.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        return Counter()

    undisturbed(
        faulty,
        rude,
        saw,
        counter=series("me5_rejected_requests_total", reason="abandoned"),
        shown='me5_rejected_requests_total{reason="abandoned"}',
        culprits="leave the queue",
    )


def test_slow_loris(faulty: Faulty, saw: Saw) -> None:
    def rude(episode: Episode) -> Counter[int]:
        slow = connect(episode.gateway, 200)
        start = b"POST /embed HTTP/1.1\r\nhost: x\r\nx-slow: "
        until = time.monotonic() + 1.5 * HEADER_TIMEOUT_S
        sent = 0
        while time.monotonic() < until:
            for connection in slow:
                try:
                    connection.sendall(start[sent : sent + 1] or b"a")
                except ConnectionError:
                    continue
            sent += 1
            time.sleep(0.1)
        return read_all(slow)

    got = undisturbed(
        faulty,
        rude,
        saw,
        counter=series("me5_refused_connections_total", reason="header_timeout"),
        shown='me5_refused_connections_total{reason="header_timeout"}',
        culprits=f"get 408 after {HEADER_TIMEOUT_S:g} s (`ME5_HEADER_TIMEOUT_S`)",
    )
    assert got.total() == 200
    # Who sends into a connection that is closed already loses what was answered.
    assert set(got) <= {408, 0}


def test_half_sent_bodies(faulty: Faulty, saw: Saw) -> None:
    def rude(episode: Episode) -> Counter[int]:
        half = connect(episode.gateway, 200)
        whole = request(b'{"inputs": "' + b"a" * 1000 + b'"}')
        at = time.monotonic()
        for connection in half:
            connection.sendall(whole[: len(whole) // 2])
        found = read_all(half)
        assert time.monotonic() - at >= BODY_TIMEOUT_S
        return found

    got = undisturbed(
        faulty,
        rude,
        saw,
        counter=series("me5_request_duration_seconds_count", route="/embed", role="none", lane="none", code="408"),
        shown='me5_request_duration_seconds_count{code="408"}',
        culprits=f"get 408 after {BODY_TIMEOUT_S:g} s (`ME5_BODY_TIMEOUT_S`)",
    )
    assert got == {408: 200}


def test_clients_that_never_read(faulty: Faulty, saw: Saw) -> None:
    # An answer of more megabytes than the kernel's buffers take, and soon made.
    body = json.dumps({"inputs": "a " * 50_000}).encode()

    def rude(episode: Episode) -> Counter[int]:
        deaf = connect(episode.gateway, 5)
        for connection in deaf:
            connection.sendall(request(body, path="/tokenize") * 3)
        counter = series("me5_refused_connections_total", reason="not_reading")
        with episode.gateway.client() as client:
            before = scrape(client)[counter]
            episode.wait_for(lambda: scrape(client)[counter] - before >= 5, "connections that are cut")
        for connection in deaf:
            connection.close()
        return Counter()

    undisturbed(
        faulty,
        rude,
        saw,
        counter=series("me5_refused_connections_total", reason="not_reading"),
        shown='me5_refused_connections_total{reason="not_reading"}',
        culprits=f"are cut off after {WRITE_TIMEOUT_S:g} s (`ME5_WRITE_TIMEOUT_S`)",
    )


def test_gzip_bombs(faulty: Faulty, saw: Saw) -> None:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(squeezer.compress(b" " * 2**20) for _ in range(100)) + squeezer.flush()
    assert len(bomb) < 200_000

    process = psutil.Process(faulty.gateway.process.pid)
    resident = process.memory_info().rss

    def rude(episode: Episode) -> Counter[int]:
        senders = connect(episode.gateway, 50)
        for connection in senders:
            connection.sendall(request(bomb, "content-encoding: gzip", "connection: close"))
        return read_all(senders)

    got = undisturbed(
        faulty,
        rude,
        saw,
        counter=series("me5_request_duration_seconds_count", route="/embed", role="none", lane="none", code="415"),
        shown='me5_request_duration_seconds_count{code="415"}',
        culprits="get 415, their bodies dropped",
    )
    assert got == {415: 50}
    # Unpacked they are five gigabytes.
    assert process.memory_info().rss - resident < 100 * 2**20
