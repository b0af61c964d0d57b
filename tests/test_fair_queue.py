"""The order of a lane's texts: by arrival for one client, fair between several."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import WINDOW, Limits
from service.fair_queue import FairQueue


@dataclass(eq=False)
class Text:
    client: str
    length: int = 10
    turn: float = 0.0


def drained(queue: FairQueue[Text], max_tokens: int = 1) -> list[Text]:
    order: list[Text] = []
    while len(queue):
        order += queue.take(Limits(max_tokens))
    return order


def test_one_clients_texts_go_in_the_order_they_came() -> None:
    queue: FairQueue[Text] = FairQueue()
    texts = [Text("a", length) for length in (5, 500, 7, 90, 3)]
    for text in texts:
        queue.add("a", [text])
    assert drained(queue) == texts


def test_a_late_text_of_a_modest_client_goes_next() -> None:
    queue: FairQueue[Text] = FairQueue()
    queue.add("greedy", [Text("greedy") for _ in range(1000)])
    for _ in range(3):
        queue.take(Limits(1))
    queue.add("modest", [Text("modest")])
    assert [text.client for text in queue.take(Limits(1)) + queue.take(Limits(1))].count("modest") == 1


def test_clients_that_always_wait_get_equal_shares_of_tokens_whatever_their_texts() -> None:
    queue: FairQueue[Text] = FairQueue()
    for _ in range(400):
        queue.add("short", [Text("short", 10)])
    for _ in range(40):
        queue.add("long", [Text("long", 100)])
    served = {"short": 0, "long": 0}
    while sum(served.values()) < 4000:
        for text in queue.take(Limits(1)):
            served[text.client] += text.length
    assert abs(served["short"] - served["long"]) <= 200


def test_who_was_idle_has_saved_nothing_up() -> None:
    queue: FairQueue[Text] = FairQueue()
    queue.add("busy", [Text("busy") for _ in range(100)])
    for _ in range(50):
        queue.take(Limits(1))
    queue.add("back", [Text("back") for _ in range(100)])
    order = [text.client for _ in range(40) for text in queue.take(Limits(1))]
    assert 15 <= order.count("busy") <= 25


def test_an_empty_lane_closes_its_books() -> None:
    queue: FairQueue[Text] = FairQueue()
    queue.add("a", [Text("a")])
    queue.take(Limits(1))
    queue.close_books("a")
    assert not queue._ends


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 512)), min_size=1, max_size=60), st.integers(1, 2048))
def test_every_text_leaves_once_and_the_count_of_tokens_is_right(texts: list[tuple[str, int]], budget: int) -> None:
    queue: FairQueue[Text] = FairQueue()
    added = [Text(client, length) for client, length in texts]
    for text in added:
        queue.add(text.client, [text])
    assert queue.tokens == sum(text.length for text in added)
    order = drained(queue, budget)
    assert sorted(map(id, order)) == sorted(map(id, added))
    assert queue.tokens == 0


def test_a_queue_deeper_than_the_window_is_served_to_its_end() -> None:
    rng = random.Random(0)
    queue: FairQueue[Text] = FairQueue()
    for _ in range(3 * WINDOW):
        queue.add(rng.choice("ab"), [Text("x", rng.randrange(1, 512))])
    assert len(drained(queue, 256)) == 3 * WINDOW


def test_unwanted_texts_leave_and_are_not_counted() -> None:
    queue: FairQueue[Text] = FairQueue()
    kept, dropped = Text("a", 3), Text("a", 50)
    queue.add("a", [kept, dropped])
    queue.keep(lambda text: text is kept)
    assert (len(queue), queue.tokens) == (1, 3)
