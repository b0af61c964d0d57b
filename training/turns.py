"""Whose turn it is: shares dealt out so evenly that the count of earlier turns needs no counting.

Two parties with shares a and 1 - a: turn n is the first one's where floor((n + 1) a) > floor(n a), and it had
floor(n a) before. More than two are halved until one is left. Nobody is off its share by more than
one turn for each halving, and 2 ** -22 of all turns; turn a billion is found in the time of the first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shares are this fine; turn × share stays in 63 bits for 2 ** 42 turns.
_BITS = 21
_ONE = 1 << _BITS


@dataclass(frozen=True)
class Turns:
    """odds: float64[K], each at least 0, one above 0; they need not sum to 1."""

    odds: NDArray[np.float64]

    def of(self, turns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Whose turns these are, and how many each had before. turns: int64[N]. Returns int64[N] twice."""
        owners, ranks = np.zeros_like(turns), turns.copy()
        self._deal(turns, np.arange(len(turns)), 0, len(self.odds), owners, ranks)
        return owners, ranks

    def _deal(
        self,
        turns: NDArray[np.int64],
        places: NDArray[np.int64],
        low: int,
        high: int,
        owners: NDArray[np.int64],
        ranks: NDArray[np.int64],
    ) -> None:
        if not len(turns):
            return
        if high - low == 1:
            owners[places], ranks[places] = low, turns
            return
        middle = (low + high) // 2
        share = _share(float(self.odds[low:middle].sum()), float(self.odds[middle:high].sum()))
        before = turns * share >> _BITS
        first = (turns + 1) * share >> _BITS > before
        self._deal(before[first], places[first], low, middle, owners, ranks)
        self._deal((turns - before)[~first], places[~first], middle, high, owners, ranks)


def _share(first: float, second: float) -> int:
    if first <= 0 or second <= 0:
        return _ONE if first > 0 else 0
    # Whoever has a share at all gets turns.
    return min(max(round(first / (first + second) * _ONE), 1), _ONE - 1)
