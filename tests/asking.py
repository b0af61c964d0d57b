"""Clients that ask a gateway all the while, in threads of their own."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from gateway_process import Gateway

Body = Mapping[str, object]

# A refusal is no reason to ask as fast as a machine can.
PAUSE_S = 0.01
TIMEOUT_S = 60.0


def queries(number: int) -> Body:
    """A short query unlike the others."""
    return {"inputs": f"how deep is the harbour, {number}?"}


def passages(number: int) -> Body:
    """Some passages of different lengths."""
    return {"inputs": [f"the harbour is deep, {number} " * (1 + row) for row in range(8)], "input_type": "passage"}


@contextmanager
def asking(
    gateway: Gateway,
    body: Callable[[int], Body] = queries,
    *,
    clients: int = 4,
    path: str = "/embed",
    headers: Mapping[str, str] | None = None,
) -> Iterator[Counter[int]]:
    """From here to the end of the block, so many clients with a connection each. Counts the statuses, 0 for none."""
    over = threading.Event()
    statuses: Counter[int] = Counter()

    def ask(client: int) -> None:
        connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=TIMEOUT_S)
        number = client * 1_000_000
        while not over.is_set():
            number += 1
            try:
                sent = {"content-type": "application/json", **(headers or {})}
                connection.request("POST", path, json.dumps(body(number)), sent)
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
            except (OSError, http.client.HTTPException):
                connection.close()
                statuses[0] += 1
            time.sleep(PAUSE_S)
        connection.close()

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join(2 * TIMEOUT_S)
    assert not any(thread.is_alive() for thread in threads), "a client still waits for its answer"
