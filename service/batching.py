"""Which texts go into the next batch: pure functions of what waits and runs. They touch no tensors and no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar, get_args

from service.shapes import Shapes, shapes_of

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = get_args(Lane)

# A request for queries of more tokens than this is bulk work, whatever its role.
INTERACTIVE_TOKENS_MAX = 1024

# Where neighbours in length are looked for: deep enough to fill any batch, small enough to sort in a fraction of a ms.
WINDOW = 512


class Waiting(Protocol):
    """A text in the queue."""

    @property
    def length(self) -> int:
        """Its tokens, special tokens included."""


T = TypeVar("T", bound=Waiting)


# Of an engine that takes any shape.
ANY = shapes_of("onnx", 0)


@dataclass(frozen=True)
class Limits:
    """max_tokens: padded tokens a batch, rows × longest row.   streams: batches the engine computes at a time.

    shapes: what the engine is best given.
    """

    max_tokens: int
    streams: int = 1
    shapes: Shapes = ANY


def lane_of(role: str, tokens: int) -> Lane:
    """Queries are interactive as long as there are few of them; passages and everything larger are bulk."""
    return "interactive" if role == "query" and tokens <= INTERACTIVE_TOKENS_MAX else "bulk"


def next_lane(waiting: Mapping[Lane, int], running: Mapping[Lane, int], streams: int) -> Lane | None:
    """The lane of the next batch, or None while nothing may start.

    waiting: texts.   running: batches.   Queries go first, and one batch more than there are streams may run: a query
    that finds every stream busy with bulk work waits for none of it, the kernel shares the cores. Bulk work keeps one
    batch running under any load of queries, so that it is slow but never starved.
    """
    total = sum(running.values())
    if waiting["interactive"] and running["interactive"] < streams and total <= streams:
        return "interactive"
    if waiting["bulk"] and (total < streams or (not running["bulk"] and total <= streams)):
        return "bulk"
    return None


def lone(waiting: Mapping[Lane, int], running: Mapping[Lane, int]) -> bool:
    """Whether one text is all there is to do: all threads together answer it soonest, streams would idle."""
    return sum(waiting.values()) == 1 and not any(running.values())


def share(limits: Limits, waiting_tokens: int, free_streams: int) -> Limits:
    """The limits of a batch that leaves the other free streams as much of what waits as it takes."""
    fair = math.ceil(waiting_tokens / max(free_streams, 1))
    return replace(limits, max_tokens=min(limits.max_tokens, max(fair, 1)))


def take_batch(waiting: Sequence[T], limits: Limits) -> list[T]:
    """The first text and its neighbours in length, longest first.

    waiting: in the order of their turns.   A neighbour joins while rows × longest stays within the limit and its
    padding costs less than a batch of its own would. The first always goes, so that no text waits for ever.
    """
    window = sorted(range(min(len(waiting), WINDOW)), key=lambda index: (waiting[index].length, index))
    widths = [limits.shapes.width(waiting[index].length) for index in window]
    first, cost = window.index(0), limits.shapes.batch_cost
    low = high = first
    while True:
        rows = high - low + 1
        # Growing by a shorter text pads that text; growing by a longer one pads every row there is.
        shorter = widths[high] - widths[low - 1] if low > 0 else None
        longer = (widths[high + 1] - widths[high]) * rows if high + 1 < len(window) else None
        goes_up = longer is not None and longer <= cost and (shorter is None or longer <= shorter)
        if goes_up and (rows + 1) * widths[high + 1] <= limits.max_tokens:
            high += 1
        elif shorter is not None and shorter <= cost and (rows + 1) * widths[high] <= limits.max_tokens:
            low -= 1
        else:
            break
    # A number of rows that the engine likes less is a batch it has to prepare for: some go with the next one.
    for _ in range(rows - limits.shapes.fewer(rows)):
        if high - first > first - low:
            high -= 1
        else:
            low += 1
    return [waiting[index] for index in reversed(window[low : high + 1])]
