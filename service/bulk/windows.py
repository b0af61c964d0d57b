"""How records become windows, and a window's texts batches: pure functions of places and lengths, never of time.

A vector depends in its last bits on the texts it was computed beside. So that a job which was killed ends with the very
bytes of one that was not, its batches follow from the input alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import InvalidInput
from service.shapes import Shapes


def window_count(records: int, size: int) -> int:
    """Windows of so many records, the last one perhaps shorter."""
    return -(-records // size)


def windows_of_shard(windows: int, shard: int, shards: int) -> range:
    """The windows of a shard: a run of neighbours, so that shards one after another are the whole."""
    return range(windows * shard // shards, windows * (shard + 1) // shards)


def shard_of(text: str) -> tuple[int, int]:
    """ "3/16" → (3, 16). Numbered from 0, as Kubernetes numbers a Job's pods."""
    shard, slash, shards = text.partition("/")
    if not (slash and shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards) <= 99_999):
        raise InvalidInput(f"shard {text!r}: give NUMBER/COUNT, numbered from 0: 0/16 to 15/16")
    return int(shard), int(shards)


def batches_by_tokens(lengths: Sequence[int], max_tokens: int, shapes: Shapes) -> list[list[int]]:
    """The places of texts that are computed together, longest first; padded tokens (rows × width) ≤ max_tokens.

    A text longer than that is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    found, start = [], 0
    while start < len(order):
        rows = max(1, max_tokens // shapes.width(lengths[order[start]]))
        stop = start + shapes.fewer(min(rows, len(order) - start))
        found.append(order[start:stop])
        start = stop
    return found


def batches_by_characters(lengths: Sequence[int], max_texts: int, max_characters: int) -> list[list[int]]:
    """The places of texts that go into one request, in order. A longer text is a request of its own."""
    found: list[list[int]] = []
    characters = 0
    for place, length in enumerate(lengths):
        if not found or len(found[-1]) == max_texts or characters + length > max_characters:
            found.append([])
            characters = 0
        found[-1].append(place)
        characters += length
    return found
