"""Fixtures of the fault matrix: one gateway that has to survive every fault of its engine, and what each test saw."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evidence import REPORT_VARIABLE, Evidence, keep
from faulty import BODY_TIMEOUT_S, ENGINE_TIMEOUT_S, HEADER_TIMEOUT_S, LAUNCHER, WRITE_TIMEOUT_S, Faulty
from gateway_process import start_gateway


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """One for all engine faults: each test begins with what the one before has left."""
    # A thousand clients are a thousand files, here and in the gateway.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    orders = tmp_path_factory.mktemp("orders") / "orders"
    with start_gateway(
        program=(str(LAUNCHER), str(orders)),
        engine_timeout_s=ENGINE_TIMEOUT_S,
        header_timeout_s=HEADER_TIMEOUT_S,
        body_timeout_s=BODY_TIMEOUT_S,
        write_timeout_s=WRITE_TIMEOUT_S,
        drain_s=0,
    ) as gateway:
        yield Faulty(gateway, orders)


@pytest.fixture
def saw(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep what this test's row showed."""
    report = os.environ.get(REPORT_VARIABLE)

    def record(**seen: object) -> None:
        keep(Evidence(request.function.__name__, **seen), Path(report) if report else None)

    return record
