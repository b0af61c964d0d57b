"""Which pairs make up which global batch: one source a batch, sources and languages by temperature.

A batch is a function of (seed, step) alone. Processes take slices of it, so what is trained on does not depend on how
many there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.permutation import key_of, permuted
from training.turns import Turns

# Steps are shuffled within blocks of this many, so that sources don't follow each other in a fixed pattern.
_BLOCK = 256
_SOURCE_KEY, _ROW_KEY, _SLICE_KEY = 1, 2, 3


@dataclass(frozen=True)
class SourceShape:
    """A source of pairs: rows lie language by language.

    languages: name → number of rows, in the order in which they lie.
    """

    name: str
    languages: Mapping[str, int]

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.languages.values())


@dataclass(frozen=True)
class GlobalBatch:
    """source: its number.   rows: int64[B], row numbers of that source, repeated where it has fewer rows than B."""

    source: int
    rows: NDArray[np.int64]


def source_odds(
    shapes: Sequence[SourceShape], *, exponent: float, cap: int | None, weights: Mapping[str, float]
) -> NDArray[np.float64]:
    """weight × min(rows, cap) ** exponent for each source, as shares that sum to 1.

    exponent 1 with a cap is the report's mixture: pools of up to 2.4 billion pairs were cut at 160 million. A source
    without rows has none. Raises ValueError where nothing is left.
    """
    sizes = np.array([shape.rows if cap is None else min(shape.rows, cap) for shape in shapes], dtype=np.float64)
    factors = np.array([weights.get(shape.name, 1.0) for shape in shapes])
    odds = np.where(sizes > 0, np.power(sizes, exponent, where=sizes > 0, out=np.zeros_like(sizes)) * factors, 0.0)
    if odds.sum() <= 0:
        raise ValueError("no source has pairs and a weight above 0")
    shares: NDArray[np.float64] = odds / odds.sum()
    return shares


class Sampler:
    """The global batches of a run."""

    def __init__(
        self,
        shapes: Sequence[SourceShape],
        odds: NDArray[np.float64],
        *,
        batch_pairs: int,
        steps: int,
        language_exponent: float,
        seed: int,
    ) -> None:
        """odds: float64[S], of the sources.   steps: of the run.   language_exponent: a language's share of its source
        is its rows to it.
        """
        self.batch_pairs = batch_pairs
        self._seed = seed
        self._steps = steps
        self._sources = Turns(odds)
        self._languages = []
        self._sizes, self._starts = [], []
        for shape in shapes:
            sizes = np.array(list(shape.languages.values()), dtype=np.int64)
            self._sizes.append(sizes)
            self._starts.append(np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64))
            filled = np.where(sizes > 0, sizes, 1).astype(np.float64)
            self._languages.append(Turns(np.where(sizes > 0, filled**language_exponent, 0.0)))

    def source_of(self, steps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sources of some steps, int64[N], and how many batches each had before, int64[N]."""
        blocks = steps // _BLOCK
        # The last block ends with the run: what is dealt out to a run of whole epochs is whole epochs.
        sizes = np.minimum(_BLOCK, self._steps - blocks * _BLOCK)
        turns = blocks * _BLOCK + permuted(steps % _BLOCK, sizes, key_of(self._seed, _SOURCE_KEY, blocks))
        return self._sources.of(turns)

    def batch(self, step: int) -> GlobalBatch:
        """The pairs of one step."""
        sources, batches_before = self.source_of(np.array([step], dtype=np.int64))
        source = int(sources[0])
        first = int(batches_before[0]) * self.batch_pairs
        languages, ranks = self._languages[source].of(np.arange(first, first + self.batch_pairs, dtype=np.int64))
        sizes = self._sizes[source][languages]
        keys = key_of(self._seed, _ROW_KEY, source, languages, ranks // sizes)
        rows = self._starts[source][languages] + permuted(ranks % sizes, sizes, keys)
        # Languages are dealt in turns: without this every process's slice would have its own pattern of them.
        order = permuted(np.arange(self.batch_pairs), self.batch_pairs, key_of(self._seed, _SLICE_KEY, step))
        return GlobalBatch(source, rows[order])
