"""A gateway that has no room: its engine stands still, and in each lane a request waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil
from gateway_process import Gateway, start_gateway
from metric_series import scrape, series

LANES = ("interactive", "bulk")
# How long what waits may wait: longer than any test.
PATIENCE_S = 600.0
FULL_MAX_S = 30.0


@dataclass(frozen=True)
class Occupied:
    """A gateway without room. engine: its process, which stands still."""

    gateway: Gateway
    engine: psutil.Process

    def release(self) -> None:
        """Let the engine go on: what waits is answered, and there is room again."""
        self.engine.resume()


@contextmanager
def occupied_gateway() -> Iterator[Occupied]:
    """A gateway that answers every request with 429 and a Retry-After of a second, until it is released."""
    with start_gateway(
        engine="onnx",
        precision="fp32",
        # An empty lane takes any request, and one that holds anything takes no other.
        max_queued_tokens=1,
        engine_timeout_s=PATIENCE_S,
        deadline_s=PATIENCE_S,
        drain_s=0,
    ) as gateway:
        with gateway.client() as client:
            for lane in LANES:
                # The Retry-After comes from the rate measured.
                ask(client, lane)
        (engine,) = psutil.Process(gateway.process.pid).children()
        engine.suspend()
        with ThreadPoolExecutor(len(LANES)) as pool:
            waiting = [pool.submit(ask, gateway.client(), lane) for lane in LANES]
            try:
                wait_until_full(gateway)
                yield Occupied(gateway, engine)
            finally:
                engine.resume()
            for one in waiting:
                one.result()


def ask(client: httpx.Client, lane: str) -> None:
    """One short text in this lane."""
    headers = {"x-me5-lane": lane}
    client.post("/embed", json={"inputs": "the harbour"}, headers=headers, timeout=PATIENCE_S).raise_for_status()


def wait_until_full(gateway: Gateway) -> None:
    """Wait until a request waits in each lane."""
    give_up = time.monotonic() + FULL_MAX_S
    with gateway.client() as client:
        while time.monotonic() < give_up:
            seen = scrape(client)
            if all(seen[series("me5_queue_tokens", lane=lane)] for lane in LANES):
                return
            time.sleep(0.05)
    raise AssertionError(f"nothing waits after {FULL_MAX_S:g} s")
