"""What happens around a fault: clients that ask all the while, and a look at /readyz every few milliseconds."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gateway_process import Gateway

# Only a hang takes this long.
PATIENCE_S = 30.0
PAUSE_S = 0.003
NO_ANSWER = 0

Body = Callable[[int], dict[str, object]]


def short_text(number: int) -> dict[str, object]:
    """A query unlike the others."""
    return {"inputs": f"how deep is the harbour, {number}?"}


@dataclass(frozen=True)
class Asked:
    """One request. status: NO_ANSWER where the connection broke."""

    sent: float
    answered: float
    status: int
    body: bytes


@dataclass
class Episode:
    """Everything seen, on the monotonic clock. ready: each change of /readyz (None: no answer), and when."""

    gateway: Gateway
    asked: list[Asked] = field(default_factory=list)
    ready: list[tuple[float, int | None]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def red_at(self, since: float) -> float | None:
        """When /readyz first was red (or silent) from this moment on."""
        return next((at for at, status in self.ready if at >= since and status != 200), None)

    def green_again_at(self, since: float) -> float | None:
        """When /readyz was green again after that."""
        red = self.red_at(since)
        return None if red is None else next((at for at, status in self.ready if at > red and status == 200), None)

    def wait_for(self, found: Callable[[], object], what: str) -> None:
        """Poll until something is there."""
        give_up = time.monotonic() + PATIENCE_S
        while not found():
            assert time.monotonic() < give_up, f"{what}: not after {PATIENCE_S:g} s\n{self.gateway.log_text()[-3000:]}"
            time.sleep(0.005)

    def wait_until_green_again(self, since: float) -> None:
        """Until /readyz was red and is green."""
        self.wait_for(lambda: self.green_again_at(since), "green again")

    def statuses(self, start: float, end: float) -> Counter[int]:
        """How the requests ended that were under way in this time."""
        return Counter(one.status for one in self.asked if one.sent <= end and one.answered >= start)

    def answered_after(self, moment: float, count: int = 20) -> None:
        """Wait for as many requests that were sent after this moment, and see that each was served."""

        def later() -> list[Asked]:
            return [one for one in list(self.asked) if one.sent > moment]

        self.wait_for(lambda: len(later()) >= count, f"{count} answers")
        unserved = [one.body for one in later() if one.status != 200]
        assert not unserved, f"{unserved[0]!r}\n{self.gateway.log_text()[-3000:]}"


@contextmanager
def watched(gateway: Gateway, *, clients: int = 8, body: Body = short_text) -> Iterator[Episode]:
    """Clients that ask one text after another, each on a connection of its own, from here to the end of the block."""
    episode = Episode(gateway)
    threads = [threading.Thread(target=_ask, args=(episode, body, index)) for index in range(clients)]
    threads.append(threading.Thread(target=_watch, args=(episode,)))
    for thread in threads:
        thread.start()
    try:
        if clients:
            episode.wait_for(lambda: len(episode.asked) >= 2 * clients, "requests under way")
        yield episode
    finally:
        episode.over.set()
        for thread in threads:
            thread.join(2 * PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads), "a client still waits for its answer"


def _connect(gateway: Gateway) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=PATIENCE_S)


def _ask(episode: Episode, body: Body, client: int) -> None:
    connection = _connect(episode.gateway)
    number = client * 1_000_000
    while not episode.over.is_set():
        number += 1
        sent = time.monotonic()
        status, answer = NO_ANSWER, b""
        try:
            connection.request("POST", "/embed", json.dumps(body(number)), {"content-type": "application/json"})
            response = connection.getresponse()
            answer, status = response.read(), response.status
        except (OSError, http.client.HTTPException):
            connection.close()
        episode.asked.append(Asked(sent, time.monotonic(), status, answer))
        # A refusal is no reason to ask as fast as a machine can.
        time.sleep(PAUSE_S if status == 200 else 0.02)
    connection.close()


def _watch(episode: Episode) -> None:
    connection = _connect(episode.gateway)
    while not episode.over.is_set():
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            response.read()
            status: int | None = response.status
        except (OSError, http.client.HTTPException):
            connection.close()
            status = None
        if not episode.ready or episode.ready[-1][1] != status:
            episode.ready.append((time.monotonic(), status))
        time.sleep(PAUSE_S)
    connection.close()
