"""A scrape of /metrics as a dictionary."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


def series(name: str, /, **labels: str) -> Series:
    """The key of a series in a scrape."""
    return name, frozenset(labels.items())


def scrape(client: httpx.Client) -> dict[Series, float]:
    """Every series of /metrics with its value."""
    response = client.get("/metrics")
    assert response.status_code == 200
    return {
        series(sample.name, **sample.labels): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def total(scraped: dict[Series, float], name: str) -> float:
    """The sum over all series of a name."""
    return sum(value for (found, _), value in scraped.items() if found == name)


def wait_until_queue_is_empty(client: httpx.Client, max_s: float = 30.0) -> None:
    """Poll the queue's gauges down to zero; fail after max_s."""
    give_up = time.monotonic() + max_s
    while time.monotonic() < give_up:
        now = scrape(client)
        if not total(now, "me5_queue_requests") and not total(now, "me5_queue_tokens"):
            return
        time.sleep(0.05)
    raise AssertionError(f"after {max_s:g} s {total(now, 'me5_queue_requests'):g} requests are still queued")
