"""The scheduler and the embedder around the real engine and the shipped model, with faults to order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from faulty_engine import FaultyEngine, first_row_nan, raises, slow, wrong_shape
from in_thread import in_thread

from service.asking import Answer, Ask, role_label
from service.embedder import Embedder
from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    EngineLost,
    GoldenMismatch,
    InvalidInput,
    Me5Error,
    Overloaded,
    ShuttingDown,
    TextTooLong,
)
from service.jobs import SETTLED_BATCHES, DrainRate
from service.metrics import Metrics
from service.settings import load_settings


@asynccontextmanager
async def serving(*spare: FaultyEngine, **variables: str) -> AsyncIterator[tuple[Embedder, FaultyEngine]]:
    """An embedder on a real engine with faults to order; spare ones are opened when it is lost."""
    engine = FaultyEngine()
    environ = {"ME5_MAX_BATCH_TOKENS": "1024"} | {f"ME5_{name.upper()}": value for name, value in variables.items()}
    embedder = Embedder(load_settings(environ), Metrics(), open_host=in_thread(engine, *spare))
    await embedder.start()
    engine.batches.clear()
    try:
        yield embedder, engine
    finally:
        engine.go.set()
        await embedder.stop()


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))  # type: ignore[arg-type]


async def outcome(work: Awaitable[Answer]) -> Answer | Me5Error:
    try:
        return await work
    except Me5Error as error:
        return error


def value_of(embedder: Embedder, name: str, **labels: str) -> float:
    found = embedder.metrics.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


def test_a_client_that_floods_keeps_no_other_client_waiting() -> None:
    async def story() -> None:
        async with serving(max_batch_tokens="16") as (embedder, engine):
            order: list[str] = []

            async def ask(client: str, number: int) -> None:
                await embedder.embed(Ask([f"text number {number}"], client=client))
                order.append(client)

            engine.go.clear()
            flood = [asyncio.create_task(ask("greedy", number)) for number in range(50)]
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 50)
            modest = asyncio.create_task(ask("modest", 0))
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 51)
            engine.go.set()
            await asyncio.gather(*flood, modest)
            assert order.index("modest") < 5

    run(story)


async def settled(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_requests_that_arrive_while_the_engine_is_busy_share_the_next_batch() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.go.clear()
            first = asyncio.create_task(embedder.embed(Ask(["one"])))
            await settled(lambda: len(engine.batches) == 1)
            rest = [asyncio.create_task(embedder.embed(Ask([f"text {index}"]))) for index in range(20)]
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 21)
            engine.go.set()
            await asyncio.gather(first, *rest)
            assert len(engine.batches) == 2
            assert engine.batches[1].rows == 20

    run(story)


def test_an_idle_engine_gets_a_lone_text_at_once() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            await embedder.embed(Ask(["one"]))
            await embedder.embed(Ask(["two"]))
            assert [batch.rows for batch in engine.batches] == [1, 1]

    run(story)


@pytest.mark.parametrize("fault", [raises, wrong_shape])
def test_a_failed_batch_answers_all_its_requests_and_the_next_batch_still_runs(fault: object) -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.fault = fault  # type: ignore[assignment]
            failed = await asyncio.gather(*(outcome(embedder.embed(Ask([f"text {index}"]))) for index in range(4)))
            assert all(isinstance(error, EngineFailed) for error in failed)
            engine.fault = None
            assert len((await embedder.embed(Ask(["fine"]))).vectors) == 1
            assert embedder.not_ready() is None
            assert value_of(embedder, "me5_queue_requests", lane="interactive") == 0
            assert value_of(embedder, "me5_queue_tokens", lane="interactive") == 0

    run(story)


def test_a_vector_that_is_not_finite_fails_its_own_request_only() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.go.clear()
            engine.fault = first_row_nan
            blocker = asyncio.create_task(outcome(embedder.embed(Ask(["blocks"]))))
            await settled(lambda: len(engine.batches) == 1)
            tasks = [asyncio.create_task(outcome(embedder.embed(Ask([f"text {index}"])))) for index in range(6)]
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 7)
            engine.go.set()
            answers = await asyncio.gather(*tasks)
            await blocker
            assert [isinstance(answer, EngineFailed) for answer in answers].count(True) == 1
            assert [isinstance(answer, Answer) for answer in answers].count(True) == 5

    run(story)


def test_an_engine_that_fails_again_and_again_is_reopened() -> None:
    async def story() -> None:
        async with serving(FaultyEngine(), engine_failures="3") as (embedder, engine):
            engine.fault = raises
            for _ in range(3):
                assert isinstance(await outcome(embedder.embed(Ask(["text"]))), EngineFailed)
            assert embedder.not_ready() == "engine reopening"
            answer = await embedder.embed(Ask(["text"]))
            assert np.isfinite(answer.vectors).all()
            assert embedder.not_ready() is None
            assert value_of(embedder, "me5_engine_restarts_total", reason="failed") == 1

    run(story)


def test_an_engine_that_gives_nothing_but_nan_is_reopened() -> None:
    async def story() -> None:
        async with serving(FaultyEngine(), engine_failures="3") as (embedder, engine):
            engine.fault = lambda _, vectors: vectors * np.float32("nan")
            for _ in range(3):
                assert isinstance(await outcome(embedder.embed(Ask(["text"]))), EngineFailed)
            assert isinstance(await outcome(embedder.embed(Ask(["text"]))), Answer)

    run(story)


def test_while_the_engine_can_not_be_reopened_requests_get_503_and_readiness_is_red() -> None:
    async def story() -> None:
        # The one engine there is fails the proof as well.
        async with serving(engine_failures="1") as (embedder, engine):
            engine.fault = raises
            assert isinstance(await outcome(embedder.embed(Ask(["text"]))), EngineFailed)
            assert embedder.not_ready() == "engine reopening"
            assert isinstance(await outcome(embedder.embed(Ask(["text"]))), EngineLost)
            assert isinstance(await outcome(embedder.embed(Ask(["text"]))), EngineLost)
            assert value_of(embedder, "me5_rejected_requests_total", reason="engine_lost") >= 2
            engine.fault = None
            await settled(lambda: embedder.not_ready() is None)
            assert isinstance(await outcome(embedder.embed(Ask(["text"]))), Answer)

    run(story)


def test_a_hung_engine_is_ended_and_what_waited_behind_its_batch_is_answered_by_the_next() -> None:
    async def story() -> None:
        async with serving(FaultyEngine(), engine_timeout_s="2") as (embedder, engine):
            engine.go.clear()
            lost = [asyncio.create_task(outcome(embedder.embed(Ask([f"text {index}"])))) for index in range(5)]
            await settled(lambda: len(engine.batches) == 1)
            waiting = [asyncio.create_task(outcome(embedder.embed(Ask([f"later {index}"])))) for index in range(5)]
            assert all(isinstance(answer, EngineLost) for answer in await asyncio.gather(*lost))
            assert embedder.not_ready() == "engine reopening"
            assert all(isinstance(answer, Answer) for answer in await asyncio.gather(*waiting))
            assert embedder.not_ready() is None
            assert value_of(embedder, "me5_engine_restarts_total", reason="hung") == 1

    run(story)


def test_a_request_past_its_deadline_gets_504_and_leaves_the_queue() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.go.clear()
            blocker = asyncio.create_task(embedder.embed(Ask(["blocks"])))
            await settled(lambda: len(engine.batches) == 1)
            late = await outcome(embedder.embed(Ask(["late"], timeout_s=0.1)))
            assert isinstance(late, DeadlineExceeded)
            engine.go.set()
            await blocker
            await embedder.embed(Ask(["next"]))
            assert len(engine.batches) == 2
            assert value_of(embedder, "me5_rejected_requests_total", reason="deadline") == 1

    run(story)


def test_abandoned_requests_are_dropped_before_their_batch_is_padded() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.go.clear()
            blocker = asyncio.create_task(embedder.embed(Ask(["blocks"])))
            await settled(lambda: len(engine.batches) == 1)
            gone = [asyncio.create_task(embedder.embed(Ask([f"gone {index}"]))) for index in range(10)]
            kept = asyncio.create_task(embedder.embed(Ask(["kept"])))
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 12)
            for task in gone:
                task.cancel()
            await asyncio.sleep(0)
            engine.go.set()
            await asyncio.gather(blocker, kept)
            assert [batch.rows for batch in engine.batches] == [1, 1]
            assert value_of(embedder, "me5_rejected_requests_total", reason="abandoned") == 10

    run(story)


def test_queries_overtake_bulk_and_bulk_is_not_starved() -> None:
    async def story() -> None:
        async with serving(max_batch_tokens="512") as (embedder, engine):
            engine.fault = slow(0.01)
            passages = [f"passage {index} " * 60 for index in range(20)]
            order: list[str] = []

            async def ask(name: str, ask: Ask) -> None:
                await embedder.embed(ask)
                order.append(name)

            bulk = asyncio.create_task(ask("bulk", Ask(list(passages), role="passage")))
            await settled(lambda: len(engine.batches) >= 1)
            queries = [asyncio.create_task(ask("query", Ask([f"query {index}"]))) for index in range(3)]
            await asyncio.gather(bulk, *queries)
            assert order == ["query"] * 3 + ["bulk"]

            # A stream of queries that never ends: bulk still gets its share.
            bulk = asyncio.create_task(ask("bulk", Ask(list(passages), role="passage")))

            async def stream() -> None:
                while not bulk.done():
                    await embedder.embed(Ask(["query"]))

            await asyncio.gather(bulk, stream(), stream())
            assert order[-1] == "bulk"

    run(story)


def test_admission_is_by_tokens_and_an_empty_queue_takes_any_request() -> None:
    async def story() -> None:
        async with serving(max_queued_tokens="50") as (embedder, engine):
            large = await embedder.embed(Ask(["a rather long text " * 20] * 8))
            assert sum(large.tokens) > 50
            engine.go.clear()
            blocker = asyncio.create_task(embedder.embed(Ask(["a rather long text " * 20] * 8)))
            await settled(lambda: len(engine.batches) >= 2)
            refused = await outcome(embedder.embed(Ask(["one more"])))
            assert isinstance(refused, Overloaded)
            assert 1 <= refused.retry_after_s <= 60
            assert value_of(embedder, "me5_rejected_requests_total", reason="overloaded") == 1
            engine.go.set()
            await blocker
            await embedder.embed(Ask(["one more"]))

    run(story)


def test_stopping_answers_what_waits_and_refuses_what_comes() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.go.clear()
            waiting = [asyncio.create_task(outcome(embedder.embed(Ask([f"text {index}"])))) for index in range(3)]
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 3)
            embedder.refuse_all()
            assert all(isinstance(answer, ShuttingDown) for answer in await asyncio.gather(*waiting))
            assert isinstance(await outcome(embedder.embed(Ask(["late"]))), ShuttingDown)
            assert value_of(embedder, "me5_rejected_requests_total", reason="shutting_down") == 4

    run(story)


def test_requests_that_wait_outside_a_failed_batch_are_not_touched() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.go.clear()
            engine.fault = lambda batch, vectors: raises(batch, vectors) if batch.rows == 3 else vectors
            doomed = asyncio.create_task(outcome(embedder.embed(Ask(["same text"] * 3))))
            await settled(lambda: len(engine.batches) == 1)
            waiting = [asyncio.create_task(outcome(embedder.embed(Ask([f"text {index}"])))) for index in range(5)]
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 6)
            engine.go.set()
            assert isinstance(await doomed, EngineFailed)
            assert all(isinstance(answer, Answer) for answer in await asyncio.gather(*waiting))

    run(story)


def test_bulk_work_that_fills_its_lane_keeps_no_query_out() -> None:
    async def story() -> None:
        async with serving(max_queued_tokens="100") as (embedder, engine):
            engine.go.clear()
            bulk = asyncio.create_task(embedder.embed(Ask(["a rather long text " * 20] * 8, role="passage")))
            await settled(lambda: len(engine.batches) == 1)
            assert isinstance(await outcome(embedder.embed(Ask(["more of it " * 20], role="passage"))), Overloaded)
            query = asyncio.create_task(embedder.embed(Ask(["a query"])))
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 1)
            engine.go.set()
            assert len((await query).vectors) == 1
            await bulk

    run(story)


def test_work_that_can_not_be_done_before_its_deadline_is_refused_at_once() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.go.clear()
            blocker = asyncio.create_task(embedder.embed(Ask(["a rather long text " * 20] * 200, role="passage")))
            await settled(lambda: len(engine.batches) == 1)
            rate = embedder._scheduler.rates["bulk"] = DrainRate()
            for batch in range(1, SETTLED_BATCHES):
                rate.add(10, batch * 0.1)
            early = await outcome(embedder.embed(Ask(["text"], role="passage", timeout_s=0.1)))
            assert isinstance(early, DeadlineExceeded)
            rate.add(10, SETTLED_BATCHES * 0.1)
            hopeless = await outcome(embedder.embed(Ask(["text"], role="passage", timeout_s=1.0)))
            assert isinstance(hopeless, Overloaded)
            assert "longer than the 1 s allowed" in hopeless.message
            engine.go.set()
            await blocker

    run(story)


def test_texts_of_both_roles_in_one_request_are_counted_as_what_they_are() -> None:
    async def story() -> None:
        async with serving() as (embedder, _):
            answer = await embedder.embed(Ask(["query: tea", "passage: tea", "tea"]))
            assert answer.roles == ["query", "passage", "query"]
            assert role_label(answer.roles) == "mixed"

    run(story)


def test_a_text_embedded_alone_equals_the_same_text_in_a_padded_batch() -> None:
    async def story() -> None:
        async with serving() as (embedder, _):
            texts = ["tea", "茶为什么会变苦？", "a much longer text about the weather and the wind " * 3, "чай"]
            together = (await embedder.embed(Ask(list(texts)))).vectors
            alone = np.concatenate([(await embedder.embed(Ask([text]))).vectors for text in texts])
            # float32 sums in another order
            np.testing.assert_allclose(together, alone, atol=1e-5)

    run(story)


def test_a_wrong_engine_does_not_pass_the_proof() -> None:
    async def story() -> None:
        engine = FaultyEngine()
        engine.fault = lambda _, vectors: np.roll(vectors, 1, axis=1)
        embedder = Embedder(load_settings({}), Metrics(), open_host=in_thread(engine))
        with pytest.raises(GoldenMismatch, match="golden text"):
            await embedder.start()
        await embedder.stop()

    run(story)


def test_raw_vectors_and_unit_vectors_share_a_batch_and_each_gets_its_own() -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            engine.go.clear()
            blocker = asyncio.create_task(embedder.embed(Ask(["blocks"])))
            await settled(lambda: len(engine.batches) == 1)
            both = [asyncio.create_task(embedder.embed(Ask(["tea"], normalize=unit))) for unit in (True, False)]
            await settled(lambda: value_of(embedder, "me5_queue_requests", lane="interactive") == 3)
            engine.go.set()
            await blocker
            unit, raw = [(await task).vectors[0] for task in both]
            assert len(engine.batches) == 2
            assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
            assert abs(np.linalg.norm(raw) - 1) > 1e-3
            np.testing.assert_allclose(raw / np.linalg.norm(raw), unit, atol=1e-5)

    run(story)


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (Ask(["x"] * 2049), InvalidInput, "batch size 2049 > maximum allowed batch size 2048"),
        (Ask(["x"], dimensions=0), InvalidInput, "1 to 768"),
        (Ask(["x"], dimensions=769), InvalidInput, "1 to 768"),
        (Ask(["x"], instruction="Find"), InvalidInput, "takes no instruction"),
        (Ask(["x " * 600, "y", "z " * 700], truncate=False), TextTooLong, r"less than 512 tokens.*inputs 0, 2"),
        (Ask([[0, 10**9, 2]]), InvalidInput, "1000000000"),
    ],
)
def test_bad_asks_are_refused_before_they_reach_the_engine(ask: Ask, error: type[Me5Error], says: str) -> None:
    async def story() -> None:
        async with serving() as (embedder, engine):
            with pytest.raises(error, match=says):
                await embedder.embed(ask)
            assert not engine.batches

    run(story)


def test_a_batch_that_is_cancelled_before_it_begins_gives_its_stream_back() -> None:
    async def story() -> None:
        async with serving() as (embedder, _):
            host = embedder._scheduler._host
            assert host is not None
            host.remote = True
            for number in range(5):
                asked = asyncio.create_task(embedder.embed(Ask([f"never mind {number}"])))
                # Two turns: the request is submitted, the batch is made and not begun.
                while not embedder._scheduler._batches:
                    await asyncio.sleep(0)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            await settled(lambda: not any(embedder._scheduler._running.values()))
            assert (await embedder.embed(Ask(["at last"]))).vectors.shape[0] == 1

    run(story)
