"""What is made of a Triton that gives nonsense, flaps, hangs, is full, or goes; on the real protocol."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from little_triton import DIMENSION, ROW, LittleTriton, counted, little_tritons, pool_of, until

from service.engine_triton import TritonHost, TritonPool
from service.errors import EngineFailed, EngineLost, Overloaded, UpstreamFailed
from service.triton_client import BatchFailed
from service.triton_upstream import PENALTY_S

Story = Callable[[list[LittleTriton], TritonPool, TritonHost], Awaitable[None]]


def tell(story: Story, count: int = 1, timeout_s: float = 60.0) -> None:
    async def whole() -> None:
        async with little_tritons(count) as tritons, pool_of(tritons, timeout_s=timeout_s) as pool:
            await story(tritons, pool, TritonHost(pool))

    asyncio.run(asyncio.wait_for(whole(), 90))


async def ask(host: TritonHost, rows: int = 1) -> np.ndarray:
    return await host.run([ROW] * rows, lane="bulk")


@pytest.mark.parametrize("answer", ["shape", "bytes", "memory"])
def test_nonsense_and_errors_are_told_and_after_three_it_is_proved_anew(answer: str) -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].answer = answer
        for _ in range(3):
            with pytest.raises(EngineFailed):
                await ask(host)
        assert not pool.ready()
        assert (await host.lost).startswith("no Triton is ready")
        assert counted(pool, "me5_upstream_batches_total", upstream=tritons[0].address, outcome="failed") >= 3
        tritons[0].answer = "ok"
        await until(lambda: bool(pool.ready()))
        assert (await ask(TritonHost(pool))).shape == (1, DIMENSION)

    tell(story)


def test_vectors_that_are_not_finite_three_times_turn_it_red() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].answer = "nan"
        for _ in range(3):
            assert not np.isfinite(await ask(host)).any()
        assert not pool.ready()

    tell(story)


def test_a_batch_that_one_fails_on_is_tried_on_another_once() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].answer = "memory"
        for _ in range(20):
            assert (await ask(host)).shape == (1, DIMENSION)
        assert counted(pool, "me5_upstream_retries_total") > 0
        for each in tritons:
            each.answer = "full"
        before = [len(each.sizes) for each in tritons]
        with pytest.raises(Overloaded) as refused:
            await ask(host)
        assert refused.value.retry_after_s == 1
        assert sum(len(each.sizes) for each in tritons) - sum(before) == 2

    tell(story, count=2)


def test_one_that_fails_at_once_does_not_draw_the_load() -> None:
    async def story(tritons: list[LittleTriton], _: TritonPool, host: TritonHost) -> None:
        tritons[0].answer = "full"
        before = len(tritons[0].sizes)
        await asyncio.gather(*(ask(host) for _ in range(40)))
        asked = len(tritons[0].sizes) - before
        assert asked < 25, "of 40"
        await asyncio.sleep(PENALTY_S)

    tell(story, count=2)


def test_two_that_are_lost_with_a_batch_leave_the_others_to_serve() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        calls = asyncio.create_task(ask(host))
        for each in tritons:
            each.delay_s = 30
        more = [asyncio.create_task(ask(host)) for _ in range(3)]
        await asyncio.sleep(0.2)
        tritons[0].silent = tritons[1].silent = True
        tritons[2].delay_s = 0
        found = await asyncio.gather(calls, *more, return_exceptions=True)
        assert all(isinstance(each, np.ndarray | UpstreamFailed) for each in found), found
        assert pool.ready()
        assert not host.lost.done()

    tell(story, count=3)


def test_waiting_too_long_in_the_queue_of_one_that_says_so_is_no_fault_of_it() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].answer = "expired"
        with pytest.raises(Overloaded):
            await ask(host)
        assert pool.ready()

    tell(story)


def test_a_batch_without_an_answer_is_the_fault_of_one_that_answers_nothing_else() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].delay_s = 30
        slow = asyncio.create_task(ask(host))
        await until(lambda: len(tritons[0].sizes) > 1)
        tritons[0].delay_s = 0
        assert (await ask(host)).shape == (1, DIMENSION)
        with pytest.raises(Overloaded):
            await slow
        assert pool.ready()
        tritons[0].delay_s = 30
        with pytest.raises(EngineLost):
            await ask(host)
        assert not pool.ready()

    tell(story, timeout_s=1.0)


def test_a_full_queue_neither_reddens_nor_disproves() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].answer = "full"
        for _ in range(10):
            with pytest.raises(Overloaded):
                await ask(host)
        assert pool.ready()

    tell(story)


def test_batches_are_divided_by_what_the_configuration_takes_and_that_is_read_again() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].sizes.clear()
        assert (await ask(host, 300)).shape == (300, DIMENSION)
        assert sorted(tritons[0].sizes) == [44, 256]
        tritons[0].rows_max = 32
        for _ in range(3):
            with pytest.raises(EngineFailed, match="batch-size"):
                await ask(host, 64)
        await until(lambda: bool(pool.ready()))
        tritons[0].sizes.clear()
        assert (await ask(TritonHost(pool), 64)).shape == (64, DIMENSION)
        assert tritons[0].sizes == [32, 32]

    tell(story)


def test_one_that_falls_silent_is_known_and_its_batches_go_to_another() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].silent = True
        asked = [asyncio.create_task(ask(host)) for _ in range(8)]
        await until(lambda: len(pool.ready()) == 1)
        assert all(vectors.shape == (1, DIMENSION) for vectors in await asyncio.gather(*asked))
        tritons[0].silent = False
        await until(lambda: len(pool.ready()) == 2)

    tell(story, count=2)


def test_a_cancelled_run_is_cancelled_and_nothing_else_happens_to_it() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        tritons[0].delay_s = 30
        asked = asyncio.create_task(ask(host))
        await until(lambda: pool.ready()[0].in_flight > 0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert pool.ready()[0].in_flight == 0
        assert counted(pool, "me5_upstream_batches_total", upstream=tritons[0].address, outcome="cancelled") == 1

    tell(story)


def test_an_address_that_goes_answers_what_it_has_and_leaves_no_series(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        gone = tritons[0]
        gone.delay_s = tritons[1].delay_s = 1.0
        asked = [asyncio.create_task(ask(host)) for _ in range(4)]
        await until(lambda: all(each.in_flight for each in pool.ready()))
        pool._take({name: target for name, target in pool._found.items() if name != gone.address})
        assert [each.name for each in pool.ready()] == [tritons[1].address]
        # It returns while it is let go of, and is taken once that is done.
        everything = {each.address: pool._targets[place] for place, each in enumerate(tritons)}
        pool._take(everything)
        assert gone.address in pool._leaving
        assert all(isinstance(vectors, np.ndarray) for vectors in await asyncio.gather(*asked))
        await until(lambda: not pool._leaving)
        assert counted(pool, "me5_upstream_batches_total", upstream=gone.address, outcome="ok") == 0
        pool._take(everything)
        await until(lambda: len(pool.ready()) == 2)
        assert counted(pool, "me5_upstream_ready", upstream=gone.address) == 1

    # Only the test says what is there.
    monkeypatch.setattr("service.engine_triton.RESOLVE_EVERY_S", 1e6)
    tell(story, count=2)


def test_a_pool_can_be_closed_while_it_proves() -> None:
    async def story(tritons: list[LittleTriton], pool: TritonPool, host: TritonHost) -> None:
        del host
        tritons[0].answer = "memory"
        for _ in range(3):
            with pytest.raises(BatchFailed):
                await next(iter(pool._upstreams.values())).run([ROW], lane="bulk")
        tritons[0].answer, tritons[0].delay_s = "ok", 30
        await until(lambda: next(iter(pool._upstreams.values()))._proving is not None)
        async with asyncio.timeout(10):
            await pool.close()

    tell(story)


@pytest.mark.parametrize(
    "row_delay_s", [0.0, 1e-4], ids=["any part fails first", "the last, smallest part fails first"]
)
def test_refused_batches_leave_no_rings_for_the_collector(row_delay_s: float) -> None:
    async def story(tritons: list[LittleTriton], _: TritonPool, host: TritonHost) -> None:
        tritons[0].answer, tritons[0].row_delay_s = "full", row_delay_s

        async def refused(rows: int) -> None:
            with pytest.raises(Overloaded):
                await ask(host, rows)

        await refused(1)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await refused(1)
                await refused(300)
            await asyncio.sleep(0.1)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            kinds = Counter(type(each).__name__ for each in gc.garbage)
            assert not kinds.keys() & {"BatchFailed", "Overloaded", "Task", "InferInput", "ndarray"}, kinds
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    tell(story)
