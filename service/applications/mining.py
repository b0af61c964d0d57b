"""Which sentences of two sides are translations of each other, by the margin of their nearness.

Artetxe and Schwenk, "Margin-based Parallel Corpus Mining with Multilingual Sentence Embeddings", ACL 2019: a cosine
says little by itself, for some sentences are near to everything. The margin compares it with what is usual for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.applications.neighbours import Neighbours
from service.errors import InvalidInput

Margin = Literal["ratio", "distance", "absolute"]
Retrieval = Literal["forward", "backward", "intersect", "max"]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Mined pairs, best first. sources, targets: int64[P], rows of each side.   scores: float64[P], their margins."""

    sources: Numbers
    targets: Numbers
    scores: NDArray[np.float64]

    def above(self, threshold: float) -> Pairs:
        """Those with at least this score."""
        kept = self.scores >= threshold
        return Pairs(self.sources[kept], self.targets[kept], self.scores[kept])


@dataclass(frozen=True)
class Quality:
    """precision: of the pairs that could be judged, those that are right.   recall: of the right ones, those found."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Their harmonic mean; 0 where nothing right was found."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def mine(forward: Neighbours, backward: Neighbours, margin: Margin = "ratio", retrieval: Retrieval = "max") -> Pairs:
    """Pairs from the nearest targets of each source (forward) and the nearest sources of each target (backward).

    retrieval: "forward" takes the best target of each source, "backward" the best source of each target, "intersect"
    what both agree on, "max" both, best margin first, each sentence once.
    """
    usual_of_sources = forward.scores.astype(np.float64).mean(axis=1)
    usual_of_targets = backward.scores.astype(np.float64).mean(axis=1)
    targets, ahead = _best(forward, usual_of_sources, usual_of_targets, margin)
    sources, back = _best(backward, usual_of_targets, usual_of_sources, margin)
    every_source, every_target = np.arange(len(targets)), np.arange(len(sources))
    if retrieval == "forward":
        return _ranked(every_source, targets, ahead)
    if retrieval == "backward":
        return _ranked(sources, every_target, back)
    if retrieval == "intersect":
        agreed = sources[targets] == every_source
        return _ranked(every_source[agreed], targets[agreed], ahead[agreed])
    both = _ranked(
        np.concatenate([every_source, sources]), np.concatenate([targets, every_target]), np.concatenate([ahead, back])
    )
    return _each_once(both, len(targets), len(sources))


def _best(
    found: Neighbours, usual: NDArray[np.float64], usual_there: NDArray[np.float64], margin: Margin
) -> tuple[Numbers, NDArray[np.float64]]:
    """For each row its neighbour with the largest margin, and that margin; the nearer of equal ones wins."""
    near = found.scores.astype(np.float64)
    middle = (usual[:, None] + usual_there[found.numbers]) / 2
    if margin == "absolute":
        margins = near
    elif margin == "distance":
        margins = near - middle
    else:
        # Vectors at right angles to everything near them have no usual nearness to divide by.
        margins = np.divide(near, middle, out=np.zeros_like(near), where=middle != 0)
    best = np.argmax(margins, axis=1)
    rows = np.arange(len(near))
    return found.numbers[rows, best], margins[rows, best]


def _ranked(sources: Numbers, targets: Numbers, scores: NDArray[np.float64]) -> Pairs:
    order = np.lexsort((targets, sources, -scores))
    return Pairs(sources[order], targets[order], scores[order])


def _each_once(ranked: Pairs, source_count: int, target_count: int) -> Pairs:
    source_free, target_free = bytearray(b"\1" * source_count), bytearray(b"\1" * target_count)
    kept = []
    for place, (source, target) in enumerate(zip(ranked.sources.tolist(), ranked.targets.tolist(), strict=True)):
        if source_free[source] and target_free[target]:
            source_free[source] = target_free[target] = 0
            kept.append(place)
    return Pairs(ranked.sources[kept], ranked.targets[kept], ranked.scores[kept])


def quality(pairs: Pairs, gold: Mapping[int, int | None]) -> Quality:
    """How good pairs are. gold: for each source that people looked at its target, or None where it has none.

    Pairs of other sources are not judged. Nothing judged is a precision of 1.
    """
    right = np.asarray(_verdicts(pairs, gold), dtype=bool)
    there = sum(target is not None for target in gold.values())
    precision = float(right.mean()) if len(right) else 1.0
    return Quality(precision, float(right.sum()) / there)


def best_threshold(pairs: Pairs, gold: Mapping[int, int | None]) -> float:
    """The score above which the pairs have the best F1 on the gold: halfway between the last kept and the first not.

    Raises InvalidInput where no pair of the gold was found, so that every threshold is as good.
    """
    judged = [place for place, source in enumerate(pairs.sources.tolist()) if source in gold]
    right = np.asarray(_verdicts(pairs, gold), dtype=bool)
    if not right.any():
        raise InvalidInput(
            f"none of the {len(gold)} lines of the gold file was mined right, so it can't say what threshold is good; "
            "are its two columns line numbers of SOURCE and TARGET, from 1?"
        )
    there = sum(target is not None for target in gold.values())
    # 2 · right ÷ (found + there) is F1.
    f1 = 2 * np.cumsum(right) / (np.arange(1, len(right) + 1) + there)
    scores = pairs.scores[judged]
    # Equal scores are kept or left out together.
    f1[:-1][scores[:-1] == scores[1:]] = -1
    last = int(np.argmax(f1))
    return float(scores[last]) if last + 1 == len(scores) else float((scores[last] + scores[last + 1]) / 2)


def _verdicts(pairs: Pairs, gold: Mapping[int, int | None]) -> list[bool]:
    """Whether each judged pair is right, best first."""
    return [
        gold[source] == target
        for source, target in zip(pairs.sources.tolist(), pairs.targets.tolist(), strict=True)
        if source in gold
    ]
