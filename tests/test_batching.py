"""The policy that fills batches."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import (
    ANY,
    INTERACTIVE_TOKENS_MAX,
    WINDOW,
    Lane,
    Limits,
    lane_of,
    lone,
    next_lane,
    share,
    take_batch,
)
from service.shapes import shapes_of


@dataclass(frozen=True)
class Text:
    length: int
    order: int = 0


def texts(*lengths: int) -> list[Text]:
    return [Text(length, order) for order, length in enumerate(lengths)]


def area(batch: list[Text]) -> int:
    return max(text.length for text in batch) * len(batch)


def test_the_oldest_text_is_always_in_the_batch() -> None:
    waiting = texts(400, *[10] * 50)
    assert waiting[0] in take_batch(waiting, Limits(1024))


def test_texts_of_like_length_fill_the_budget_and_no_more() -> None:
    batch = take_batch(texts(*[16] * 100), Limits(1024))
    assert len(batch) == 64


def test_neighbours_in_length_come_before_earlier_arrivals() -> None:
    batch = take_batch(texts(20, 200, 21, 200, 19), Limits(1024))
    assert sorted(text.length for text in batch) == [19, 20, 21]


def test_padding_that_costs_more_than_a_batch_of_its_own_is_refused() -> None:
    assert len(take_batch(texts(100, 100 - ANY.batch_cost), Limits(1024))) == 2
    assert len(take_batch(texts(100, 100 - ANY.batch_cost - 1), Limits(1024))) == 1


def test_a_text_as_long_as_the_whole_budget_goes_alone() -> None:
    assert [text.length for text in take_batch(texts(512, 512, 512), Limits(512))] == [512]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(512, 4096))
def test_any_queue_gives_a_batch_within_the_budget_with_the_oldest_in_it(lengths: list[int], budget: int) -> None:
    waiting = texts(*lengths)
    batch = take_batch(waiting, Limits(budget))
    assert area(batch) <= budget
    assert waiting[0] in batch
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(waiting)


def test_every_text_leaves_the_queue_in_the_end() -> None:
    rng = random.Random(0)
    waiting = texts(*(rng.choice([8, 16, 40, 120, 500]) + rng.randrange(10) for _ in range(3 * WINDOW)))
    seen: set[Text] = set()
    while waiting:
        batch = take_batch(waiting, Limits(1024))
        seen.update(batch)
        taken = set(batch)
        waiting = [text for text in waiting if text not in taken]
    assert len(seen) == 3 * WINDOW


def test_a_deep_queue_wastes_less_than_five_per_cent_on_padding() -> None:
    rng = random.Random(1)
    waiting = texts(*(max(4, round(rng.lognormvariate(3.3, 0.5))) for _ in range(2000)))
    padded = real = 0
    while waiting:
        batch = take_batch(waiting, Limits(1024))
        padded += area(batch)
        real += sum(text.length for text in batch)
        taken = set(batch)
        waiting = [text for text in waiting if text not in taken]
    assert 1 - real / padded < 0.05


def test_a_batch_has_the_shapes_that_its_engine_knows() -> None:
    shapes = shapes_of("openvino", 512)
    batch = take_batch(texts(*[17] * 7), Limits(1024, shapes=shapes))
    assert len(batch) == 6
    rng = random.Random(2)
    waiting = texts(*(rng.randint(5, 60) for _ in range(500)))
    while waiting:
        batch = take_batch(waiting, Limits(384, shapes=shapes))
        assert waiting[0] in batch
        assert len(batch) == shapes.fewer(len(batch))
        assert shapes.width(max(text.length for text in batch)) * len(batch) <= 384
        taken = set(batch)
        waiting = [text for text in waiting if text not in taken]


def test_openvino_s_shapes_waste_little_of_a_deep_queue() -> None:
    rng, shapes = random.Random(1), shapes_of("openvino", 512)
    waiting = texts(*(max(4, round(rng.lognormvariate(3.3, 0.5))) for _ in range(2000)))
    padded = real = 0
    while waiting:
        batch = take_batch(waiting, Limits(384, shapes=shapes))
        padded += shapes.width(max(text.length for text in batch)) * len(batch)
        real += sum(text.length for text in batch)
        taken = set(batch)
        waiting = [text for text in waiting if text not in taken]
    assert 1 - real / padded < 0.05


def shapes_met(limits: Limits) -> int:
    """How many different ones, in 300 batches of a queue that is always 64 texts deep."""
    rng, met = random.Random(3), set()
    waiting: list[Text] = []
    for order in range(300):
        while len(waiting) < 64:
            waiting.append(Text(max(4, round(rng.lognormvariate(3.3, 0.5))), order * 64 + len(waiting)))
        batch = take_batch(waiting, limits)
        met.add((len(batch), limits.shapes.width(max(text.length for text in batch))))
        taken = set(batch)
        waiting = [text for text in waiting if text not in taken]
    return len(met)


def test_a_few_shapes_are_met_again_and_again() -> None:
    assert shapes_met(Limits(384, shapes=shapes_of("openvino", 512))) < 80 < shapes_met(Limits(384))


@pytest.mark.parametrize(
    ("waiting", "running", "lane"),
    [
        # waiting and running: (interactive, bulk), two streams
        ((0, 0), (0, 0), None),
        ((1, 9), (0, 0), "interactive"),
        ((0, 9), (0, 1), "bulk"),
        ((0, 9), (0, 2), None),
        # A query starts beside bulk work that has every stream, and a second one waits for a stream.
        ((1, 9), (0, 2), "interactive"),
        ((1, 9), (1, 2), None),
        ((1, 9), (1, 1), "interactive"),
        # Queries fill the streams, and bulk work still has a batch under way.
        ((9, 9), (2, 0), "bulk"),
        ((9, 9), (2, 1), None),
        ((9, 0), (2, 0), None),
    ],
)
def test_queries_wait_for_no_bulk_work_and_bulk_work_never_stands_still(
    waiting: tuple[int, int], running: tuple[int, int], lane: Lane | None
) -> None:
    def both(counts: tuple[int, int]) -> dict[Lane, int]:
        return {"interactive": counts[0], "bulk": counts[1]}

    assert next_lane(both(waiting), both(running), streams=2) == lane


def test_only_a_text_that_is_alone_gets_every_core() -> None:
    assert lone({"interactive": 1, "bulk": 0}, {"interactive": 0, "bulk": 0})
    assert lone({"interactive": 0, "bulk": 1}, {"interactive": 0, "bulk": 0})
    assert not lone({"interactive": 1, "bulk": 1}, {"interactive": 0, "bulk": 0})
    assert not lone({"interactive": 1, "bulk": 0}, {"interactive": 0, "bulk": 1})


def test_what_waits_is_shared_among_the_free_streams() -> None:
    assert share(Limits(256, 2), waiting_tokens=200, free_streams=2).max_tokens == 100
    assert share(Limits(256, 2), waiting_tokens=200, free_streams=1).max_tokens == 200
    assert share(Limits(256, 2), waiting_tokens=9000, free_streams=2).max_tokens == 256
    # The extra batch of a query that finds every stream busy.
    assert share(Limits(256, 2), waiting_tokens=30, free_streams=0).max_tokens == 30


def test_only_a_few_queries_are_interactive() -> None:
    assert lane_of("query", INTERACTIVE_TOKENS_MAX) == "interactive"
    assert lane_of("query", INTERACTIVE_TOKENS_MAX + 1) == "bulk"
    assert lane_of("passage", 10) == "bulk"
