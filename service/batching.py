"""Which texts go into the next batch: pure functions of what waits. They touch no tensors and no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, get_args

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = get_args(Lane)

# While both lanes wait, bulk gets every fourth batch: slow, but never starved.
BULK_EVERY = 4

# Where neighbours in length are looked for: deep enough to fill any batch, small enough to sort in a fraction of a ms.
WINDOW = 512

# What a batch costs before its first token, in tokens: a lone text of 16 tokens takes about twice as long as its share
# of a batch of 32 (mE5-small's shape, two cores: 16 tokens more with ONNX Runtime, 22 with OpenVINO). Padding is worth
# it up to that much, not more.
BATCH_COST_TOKENS = 16


class Waiting(Protocol):
    """A text in the queue."""

    @property
    def length(self) -> int:
        """Its tokens, special tokens included."""


T = TypeVar("T", bound=Waiting)


@dataclass(frozen=True)
class Limits:
    """max_tokens: padded tokens a batch, rows × longest row."""

    max_tokens: int


def choose_lane(interactive: bool, bulk: bool, batches_since_bulk: int) -> Lane | None:
    """The lane of the next batch, from which lanes wait and how many batches ago bulk had its turn."""
    if bulk and (not interactive or batches_since_bulk >= BULK_EVERY - 1):
        return "bulk"
    return "interactive" if interactive else None


def lane_of(role: str, tokens: int, limits: Limits) -> Lane:
    """Queries that fit one batch are interactive; passages and everything larger are bulk."""
    return "interactive" if role == "query" and tokens <= limits.max_tokens else "bulk"


def take_batch(waiting: Sequence[T], limits: Limits) -> list[T]:
    """The oldest text and its neighbours in length, longest first.

    waiting: in order of arrival.   A neighbour joins while rows × longest stays within the limit and its padding costs
    less than a batch of its own would. The oldest always goes, so that no text waits for ever.
    """
    window = sorted(range(min(len(waiting), WINDOW)), key=lambda index: (waiting[index].length, index))
    low = high = window.index(0)
    width = waiting[0].length
    while True:
        rows = high - low + 1
        # Growing by a shorter text pads that text; growing by a longer one pads every row there is.
        shorter = width - waiting[window[low - 1]].length if low > 0 else None
        longer = (waiting[window[high + 1]].length - width) * rows if high + 1 < len(window) else None
        if longer is not None and (shorter is None or longer <= shorter):
            wider = waiting[window[high + 1]].length
            if longer <= BATCH_COST_TOKENS and (rows + 1) * wider <= limits.max_tokens:
                high, width = high + 1, wider
                continue
        if shorter is not None and shorter <= BATCH_COST_TOKENS and (rows + 1) * width <= limits.max_tokens:
            low -= 1
            continue
        return [waiting[index] for index in reversed(window[low : high + 1])]
