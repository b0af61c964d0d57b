"""Short runs of the overload benchmark: what it finds has to hold on any machine, however busy."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_process import Gateway, start_gateway

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from flood import bulk
from overload import TIMEOUT_MS, Fairness, Return, Step, come_back, fairness, measure_capacity, ramp, report

SECONDS = 2.5
# Small requests, so that there are enough of them in so short a time on a busy machine too; but not so small that ten
# times the capacity is more than this process and the gateway can send and refuse on two cores.
WORK = bulk(12)


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[Gateway, float]]:
    """A gateway with the shipped model, and the requests a second that it can do."""
    with start_gateway(drain_s=0) as gateway:
        yield gateway, asyncio.run(measure_capacity(gateway.url, WORK, SECONDS))


def test_who_comes_back_when_told_is_let_in(loaded: tuple[Gateway, float]) -> None:
    gateway, capacity = loaded
    back = asyncio.run(come_back(gateway.url, WORK, capacity, 1.0))
    assert back.refused > 5
    assert back.admitted > 0.7


def test_at_ten_times_its_capacity_it_works_as_much_and_keeps_its_promises(loaded: tuple[Gateway, float]) -> None:
    gateway, capacity = loaded
    # The deadline has to pass within the step, or nothing is refused.
    once, tenfold = asyncio.run(ramp(gateway.url, WORK, capacity, (1.5, 10.0), 1.5 * TIMEOUT_MS / 1000))
    assert tenfold.refused > tenfold.accepted
    assert 1 <= tenfold.retry_after_s <= 60
    # Too late is rare, and anything else than 200, 429 and 504 never happens.
    assert set(once.others) | set(tenfold.others) <= {504}
    assert min(once.kept, tenfold.kept) > 0.8
    # Refusing costs little: a benchmark on an idle machine says how little.
    assert tenfold.goodput > 0.6 * once.goodput


def test_fifty_connections_of_one_key_leave_another_its_share(loaded: tuple[Gateway, float]) -> None:
    gateway, _ = loaded
    found = asyncio.run(fairness(gateway.url, WORK, SECONDS))
    assert 0.3 < found.share < 0.7


def test_the_report_shows_each_step_as_a_share_of_the_peak() -> None:
    steps = [
        Step(1.0, 9.0, 8.0, 90, 1.0, 0.5, 1.0, 0, 0.0, {}),
        Step(10.0, 90.0, 7.6, 80, 0.99, 1.5, 3.0, 720, 4.0, {504: 1}),
    ]
    text = report(8.0, steps, Return(refused=20, admitted=0.95, longest_wait_s=17), Fairness(0.49, 0.01, 0.03))
    assert "| 1 × | 1.00 | 1.000 | 0.50 | 1.00 | 0% | 0 |  |" in text
    assert "| 10 × | 0.95 | 0.990 | 1.50 | 3.00 | 90% | 4 | 1 × 504 |" in text
    assert "Of 20 clients" in text
    assert "95% were admitted" in text
    assert "the other has 0.49 of the work" in text
