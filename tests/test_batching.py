"""The policy that fills batches."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import BATCH_COST_TOKENS, BULK_EVERY, WINDOW, Limits, choose_lane, lane_of, take_batch


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
    assert len(take_batch(texts(100, 100 - BATCH_COST_TOKENS), Limits(1024))) == 2
    assert len(take_batch(texts(100, 100 - BATCH_COST_TOKENS - 1), Limits(1024))) == 1


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


@pytest.mark.parametrize(
    ("interactive", "bulk", "since", "lane"),
    [
        (False, False, 0, None),
        (True, False, 99, "interactive"),
        (False, True, 0, "bulk"),
        (True, True, 0, "interactive"),
        (True, True, BULK_EVERY - 1, "bulk"),
    ],
)
def test_queries_go_first_and_bulk_gets_its_share(interactive: bool, bulk: bool, since: int, lane: str | None) -> None:
    assert choose_lane(interactive, bulk, since) == lane


def test_only_queries_that_fit_a_batch_are_interactive() -> None:
    limits = Limits(1024)
    assert lane_of("query", 1024, limits) == "interactive"
    assert lane_of("query", 1025, limits) == "bulk"
    assert lane_of("passage", 10, limits) == "bulk"
