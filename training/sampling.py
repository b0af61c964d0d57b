"""Which pairs make up which global batch: one source a batch or all mixed, sources and languages by temperature.

A batch is a function of (seed, step) alone. Processes take slices of it, so what is trained on does not depend on how
many there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.config import MixtureConfig
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
    """sources: int64[B], the number of each row's, mostly the same.   rows: int64[B], their numbers in their sources.

    A row comes again in a batch where its source has fewer than the batch takes.
    """

    sources: NDArray[np.int64]
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
        one_source_a_batch: bool = True,
    ) -> None:
        """odds: float64[S], of the sources.   steps: of the run.   language_exponent: a language's share of its source
        is its rows to it.   one_source_a_batch: the sources' turns are batches; otherwise rows.
        """
        self.batch_pairs = batch_pairs
        self._seed, self._one_source = seed, one_source_a_batch
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
        if self._one_source:
            (source,), (batches_before,) = self.source_of(np.array([step], dtype=np.int64))
            sources = np.full(self.batch_pairs, source)
            drawn = int(batches_before) * self.batch_pairs + np.arange(self.batch_pairs, dtype=np.int64)
        else:
            sources, drawn = self._sources.of(step * self.batch_pairs + np.arange(self.batch_pairs, dtype=np.int64))
        rows = np.empty(self.batch_pairs, dtype=np.int64)
        for source in np.unique(sources):
            rows[sources == source] = self._rows(int(source), drawn[sources == source])
        # Sources and languages are dealt in turns: without this every process's slice would have its own pattern.
        order = permuted(np.arange(self.batch_pairs), self.batch_pairs, key_of(self._seed, _SLICE_KEY, step))
        return GlobalBatch(sources[order], rows[order])

    def _rows(self, source: int, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of a source that are drawn as its first, second, …: int64[N] to int64[N]."""
        languages, ranks = self._languages[source].of(drawn)
        sizes = self._sizes[source][languages]
        keys = key_of(self._seed, _ROW_KEY, source, languages, ranks // sizes)
        return self._starts[source][languages] + permuted(ranks % sizes, sizes, keys)


def sampler_of(
    mixture: MixtureConfig,
    shapes: Sequence[SourceShape],
    weights: Mapping[str, float],
    batch_pairs: int,
    *,
    steps: int,
    seed: int,
) -> Sampler:
    """The global batches of a run whose mixture is configured.   weights: of the sources, by name."""
    return Sampler(
        shapes,
        source_odds(shapes, exponent=mixture.source_exponent, cap=mixture.source_cap, weights=weights),
        batch_pairs=batch_pairs,
        steps=steps,
        language_exponent=mixture.language_exponent,
        seed=seed,
        one_source_a_batch=mixture.one_source_a_batch,
    )
