"""A short run of the soak: requests of every length, count, route and encoding leave memory where it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gateway_process import start_gateway

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from memory import EXPECTED, MIB, peaks, run

SECONDS = 20.0
# What a pool may still grow by; a leak of a kilobyte a request is seen by `make soak` alone.
POOL_MIB = 100


@pytest.mark.slow
def test_memory_stays_flat_over_adversarial_requests() -> None:
    with start_gateway(drain_s=0) as gateway:
        # The largest of each kind first: from then on nothing needs more than was there already.
        run(gateway, SECONDS / 3, seed=1)
        samples, seen = run(gateway, SECONDS, seed=2)
        log = gateway.log_text()
    first, second = peaks(samples)
    assert not set(seen) - EXPECTED
    assert seen[200] > 0
    assert "Traceback" not in log
    assert second < 1.2 * first + POOL_MIB * MIB
