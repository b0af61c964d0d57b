"""Two systems as one: their scores brought to one scale and added, or their ranks.

Only what a system finds near the top takes part, as where two searchers hand over their hits: a document behind the
first `depth` counts like the last of them (pyserini's HybridSearcher does that, pyserini/search/hybrid/_searcher.py; it
takes (score − middle) / (max − min), which orders documents as min-max does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack, issparse

from training.errors import UnknownSystem
from training.system import Features, Identity, Nearness, Reading, Side, System

Fusion = Literal["min-max", "z-score", "rrf"]
# Reciprocal rank fusion's constant (Cormack, Clarke, Büttcher, SIGIR 2009).
RANK_OFFSET = 60
BLOCK_ROWS = 512


@dataclass(frozen=True)
class FusionOptions:
    """weight: of the first system; the second has the rest.   depth: how many documents of a query take part."""

    weight: float = 0.5
    fusion: Fusion = "min-max"
    depth: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1 or self.depth < 1:
            raise UnknownSystem(
                f"a hybrid of weight {self.weight:g} and depth {self.depth}: the weight must be from 0 to 1, "
                "the depth 1 or more"
            )


class HybridSystem:
    """A first and a second system, fused."""

    def __init__(self, first: System, second: System, options: FusionOptions) -> None:
        self._systems = (first, second)
        self._options = options
        identities = (first.identity, second.identity)
        details = {"fusion": options.fusion, "weight": f"{options.weight:g}", "depth": str(options.depth)}
        self.identity = Identity(
            name=f"hybrid:{identities[0].name}+{identities[1].name}@{options.weight:g}",
            engine=" + ".join(identity.engine for identity in identities),
            dtype=" + ".join(identity.dtype for identity in identities),
            prompts=_both([identity.prompts for identity in identities]),
            max_tokens=min((i.max_tokens for i in identities if i.max_tokens is not None), default=None),
            files=_both([identity.files for identity in identities]),
            details=details | _both([identity.details for identity in identities]),
        )

    def read(self, sides: Sequence[Side]) -> "HybridReading":
        """Both systems read the texts."""
        first, second = (system.read(sides) for system in self._systems)
        return HybridReading(first, second, self._options)


class HybridReading:
    """What both systems read."""

    def __init__(self, first: Reading, second: Reading, options: FusionOptions) -> None:
        self._readings = (first, second)
        self._options = options

    def nearness(self, queries: Side, documents: Side) -> Nearness:
        """Fused for each query over the documents asked about."""
        first, second = (reading.nearness(queries, documents) for reading in self._readings)
        # In blocks, and into the first matrix: ranks and float64 of a whole one would take several times its memory.
        for start in range(0, len(first), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            first[block] = fuse(first[block], second[block], self._options)
        return first

    def pair_nearness(self, firsts: Side, seconds: Side) -> NDArray[np.float64]:
        """Fused over all pairs together: a pair alone has nothing to be scaled by."""
        first, second = (reading.pair_nearness(firsts, seconds)[None] for reading in self._readings)
        whole = FusionOptions(self._options.weight, self._options.fusion, first.shape[1])
        return fuse(first, second, whole)[0]

    def features(self, side: Side) -> Features:
        """Both systems' rows side by side, scaled so that products of rows add up by weight."""
        scales = np.sqrt([self._options.weight, 1 - self._options.weight]).astype(np.float32)
        parts = [reading.features(side) * scale for reading, scale in zip(self._readings, scales, strict=True)]
        if any(issparse(part) for part in parts):
            return hstack([csr_matrix(part) for part in parts], format="csr")
        return np.hstack(parts)


def fuse(first: NDArray[np.floating], second: NDArray[np.floating], options: FusionOptions) -> NDArray[np.float64]:
    """The weighted sum of two matrices of scores [Q, D], each row brought to one scale first."""
    share = {"min-max": min_max, "z-score": z_score, "rrf": reciprocal_rank}[options.fusion]
    return options.weight * share(first, options.depth) + (1 - options.weight) * share(second, options.depth)


def min_max(scores: NDArray[np.floating], depth: int) -> NDArray[np.float64]:
    """Each row from 0, the last of the first `depth`, to 1, the best; a row of equal scores is 0."""
    clipped = _clipped(scores, depth)
    least, most = clipped.min(axis=1, keepdims=True), clipped.max(axis=1, keepdims=True)
    return (clipped - least) / np.where(most > least, most - least, 1)


def z_score(scores: NDArray[np.floating], depth: int) -> NDArray[np.float64]:
    """Each row with mean 0 and standard deviation 1; a row of equal scores is 0."""
    clipped = _clipped(scores, depth)
    deviation = clipped.std(axis=1, keepdims=True)
    return (clipped - clipped.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1)


def reciprocal_rank(scores: NDArray[np.floating], depth: int) -> NDArray[np.float64]:
    """1 / (60 + rank) for the first `depth` of each row, ranks from 1, equal scores in their own order; 0 behind."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    shares = np.zeros(scores.shape, dtype=np.float64)
    ranks = np.arange(1, order.shape[1] + 1)
    np.put_along_axis(shares, order, np.broadcast_to(1 / (RANK_OFFSET + ranks), order.shape), axis=1)
    return shares


def _clipped(scores: NDArray[np.floating], depth: int) -> NDArray[np.float64]:
    """The scores with those behind the first `depth` of a row raised to the last of them, float64."""
    wide = np.asarray(scores, dtype=np.float64)
    if depth >= wide.shape[1]:
        return wide
    last = np.partition(wide, wide.shape[1] - depth, axis=1)[:, wide.shape[1] - depth, None]
    return np.maximum(wide, last)


def _both(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Two mappings as one, keys numbered by system."""
    numbered = enumerate(parts, start=1)
    return {f"{number}.{key}": value for number, part in numbered for key, value in part.items()}
