"""Requests leave nothing that only a collector finds, and the process looks for it seldom and at good moments."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
from faulty_engine import SHIPPED
from numpy.typing import NDArray

from service.asking import Ask
from service.embedder import Embedder
from service.errors import DeadlineExceeded
from service.garbage import FEW_OBJECTS, PAUSES_MAX, collect_now_and_then, is_time
from service.jobs import Job
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.settings import load_settings


def test_little_is_walked_at_once_and_much_once_a_minute() -> None:
    assert is_time(FEW_OBJECTS - 1, 1)
    assert not is_time(FEW_OBJECTS, PAUSES_MAX - 1)
    assert is_time(FEW_OBJECTS, PAUSES_MAX)


def test_python_collects_again_once_the_loop_has_ended() -> None:
    async def story() -> None:
        end = collect_now_and_then()
        assert not gc.isenabled()
        end()

    asyncio.run(story())
    assert gc.isenabled()


def test_serve_reads_its_modules_without_the_collector() -> None:
    program = (
        "import gc, sys, service.commands as commands; from service.__main__ import main; "
        "sys.argv[1:] = ['serve']; commands.app = lambda obj: print(gc.isenabled()); main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


def test_what_lies_in_a_ring_is_found_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.garbage.PAUSE_S", 0.01)

    class Ring:
        def __init__(self) -> None:
            self.itself = self

    async def story() -> None:
        end = collect_now_and_then()
        gone = weakref.ref(Ring())
        assert gone() is not None
        for _ in range(500):
            await asyncio.sleep(0.01)
            if gone() is None:
                break
        end()
        assert gone() is None

    asyncio.run(story())


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_s_texts_are_freed_with_its_answer_without_a_collector(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def fail(_: Scheduler, job: Job, rows: list[NDArray[np.int32]]) -> None:
        job.fail(DeadlineExceeded(waiting=len(rows), total=len(rows)))

    async def request(embedder: Embedder) -> weakref.ref[Ask]:
        ask = Ask(["how deep is the harbour of Rotterdam?"])
        with pytest.raises(DeadlineExceeded) if fails else contextlib.nullcontext():
            await embedder.embed(ask)
        return weakref.ref(ask)

    async def story() -> None:
        embedder = Embedder(load_settings({"ME5_MODEL": str(SHIPPED)}), Metrics())
        await embedder.start()
        if fails:
            monkeypatch.setattr(Scheduler, "submit", fail)
        gc.collect()
        gc.disable()
        try:
            gone = await request(embedder)
            await asyncio.sleep(0)
            assert gone() is None
        finally:
            gc.enable()
            await embedder.stop()

    asyncio.run(story())
