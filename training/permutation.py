"""The order of a corpus as a function: which row comes at which place, without an array of places.

A Feistel network over the next power of four, whose places behind the end are walked on until they fall inside. So
place 700,000,000 of a billion costs what the first one does, in memory and in time, and a resumed run, at any number of
processes, reads exactly what it would have read.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6

Whole = int | NDArray[np.int64]


def key_of(*parts: Whole) -> NDArray[np.uint64]:
    """Mix whole numbers (a seed, a source, an epoch), or arrays of them that broadcast, into keys of 64 bits."""
    key = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)
    for part in parts:
        key = _mixed(key ^ np.asarray(part).astype(np.uint64))
    return key


def permuted(places: NDArray[np.int64], sizes: Whole, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rows at some places of the orders that keys stand for.

    places: int64[N], each in [0, its size).   sizes: how many rows there are, at most 2 ** 52.   keys: of key_of.
    sizes and keys broadcast to [N]: places of one order, or of as many as there are places.
    Returns int64[N]: over all places of one order every row comes exactly once.
    """
    size = np.broadcast_to(np.asarray(sizes, dtype=np.uint64), places.shape)
    # The length in bits of the largest row, rounded up to an even number; exact below 2 ** 53.
    half = ((np.frexp(size.astype(np.float64) - 1)[1] + 1) // 2).astype(np.uint64)
    rounds = [np.broadcast_to(_mixed(keys ^ np.uint64(number)), places.shape) for number in range(ROUNDS)]
    rows = _network(places.astype(np.uint64), half, rounds)
    # The domain is at most four times as large as the corpus: a few walks bring every place home.
    while len(outside := np.flatnonzero(rows >= size)):
        rows[outside] = _network(rows[outside], half[outside], [key[outside] for key in rounds])
    return rows.astype(np.int64)


def _network(
    values: NDArray[np.uint64], half: NDArray[np.uint64], rounds: list[NDArray[np.uint64]]
) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in rounds:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output."""
    # Unsigned products of arrays wrap around, as wanted.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
