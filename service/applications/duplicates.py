"""Groups of texts that say nearly the same, in one language or across several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from service.applications.neighbours import EXACT_ROWS_MAX, How, Vectors, pairs_in_cells, pairs_within

Keep = Literal["first", "longest"]
Numbers = NDArray[np.int64]
# Pairs held before they are folded into groups: 64 MB. Without that a file of one sentence said in a million ways
# would have half a million million.
PAIRS_HELD = 4_000_000


@dataclass(frozen=True)
class Group:
    """kept: the row that stays.   rows: all of the group's, ascending, the kept one among them."""

    kept: int
    rows: list[int]


def find_groups(vectors: Vectors, least: float, how: How = "auto") -> Numbers:
    """For each row of [N, D] the number of its group, int64[N]: rows that a chain of products above `least` joins."""
    exact = how == "exact" or (how == "auto" and len(vectors) <= EXACT_ROWS_MAX)
    return joined(pairs_within(vectors, least) if exact else pairs_in_cells(vectors, least), len(vectors))


def joined(pairs: Iterable[tuple[Numbers, Numbers]], rows: int, *, most_held: int = PAIRS_HELD) -> Numbers:
    """The number of each row's group, int64[rows], from pairs of rows that belong together, in pieces of any size."""
    groups = np.arange(rows)
    held: list[tuple[Numbers, Numbers]] = []
    count = 0
    for lower, higher in pairs:
        held.append((lower, higher))
        count += len(lower)
        if count > most_held:
            groups, held, count = _folded(groups, held), [], 0
    return _folded(groups, held)


def _folded(groups: Numbers, held: Sequence[tuple[Numbers, Numbers]]) -> Numbers:
    """Groups joined further by pairs of rows. One edge from each row to its group's number stands for all before."""
    rows = np.arange(len(groups))
    lower = np.concatenate([rows, *(pair[0] for pair in held)])
    higher = np.concatenate([_first_of(groups), *(pair[1] for pair in held)])
    graph = coo_array((np.ones(len(lower), dtype=np.int8), (lower, higher)), shape=(len(groups), len(groups)))
    _, found = connected_components(graph, directed=False)
    return np.asarray(found, dtype=np.int64)


def _first_of(groups: Numbers) -> Numbers:
    """For each row the first row of its group."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def groups_of(numbers: Numbers, texts: Sequence[str], keep: Keep) -> list[Group]:
    """The groups of two rows or more, in the order of their first rows.

    keep: "first" keeps the row that comes first, "longest" the one with the most characters, the first of equal ones.
    """
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    found = []
    for members in np.split(order, starts[1:]):
        if len(members) > 1:
            rows = members.tolist()
            kept = rows[0] if keep == "first" else max(rows, key=lambda row: (len(texts[row]), -row))
            found.append(Group(kept, rows))
    return sorted(found, key=lambda group: group.rows[0])
