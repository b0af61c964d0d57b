"""Batches made in a thread while others are trained on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# Batches that are tokenised ahead of the one that is trained on.
AHEAD = 2

Made = TypeVar("Made")


def made_ahead(make: Callable[[int], Made], steps: range) -> Iterator[Made]:
    """The batches of the steps, in their order.   make: a function of the step alone."""
    with ThreadPoolExecutor(1, "collate") as thread:
        waiting = [thread.submit(make, step) for step in steps[:AHEAD]]
        for step in steps:
            if step + AHEAD < steps.stop:
                waiting.append(thread.submit(make, step + AHEAD))
            yield waiting.pop(0).result()
