"""Which pairs make up which batch: one source per batch, temperature over sources and over languages.

A batch is a function of (seed, step) alone, so a resumed run continues with exactly the batches it would have seen.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from training.data import NO_TEXT, Corpus

# Rows are drawn with replacement and repeated texts dropped, so more are drawn than needed.
SURPLUS = 2


@dataclass(frozen=True)
class Mixture:
    """The odds of every source, and inside a source the odds of every pair.

    source_odds: float64[S], sums to 1.   members[s]: the pair numbers of source s.
    cumulative[s]: float64, running sum of the odds of these pairs, ends at 1.
    """

    source_odds: np.ndarray
    members: list[np.ndarray]
    cumulative: list[np.ndarray]


def source_odds(pair_counts: np.ndarray, exponent: float, weights: np.ndarray) -> np.ndarray:
    """Give every source a chance in proportion to weight * pair_count ** exponent; an empty source has none.

    Raises ValueError where no source has a chance.

    pair_counts: int[S], weights: float[S].  Returns float64[S] that sums to 1.
    """
    odds = np.where(pair_counts > 0, pair_counts.astype(np.float64) ** exponent, 0.0) * weights
    if odds.sum() <= 0:
        raise ValueError("no source has pairs and a weight above 0; check the weights of [mixture]")
    return odds / odds.sum()


def pair_odds(languages: np.ndarray, exponent: float, own: np.ndarray | None = None) -> np.ndarray:
    """Weigh the pairs of one source so that its languages come up in proportion to count ** exponent.

    languages: int[N], the language of every pair.   own: float64[N], what each pair's odds are multiplied by.
    Returns float64[N] that sums to 1.
    """
    counts = np.bincount(languages).astype(np.float64)
    weights = counts[languages] ** (exponent - 1.0)
    if own is not None:
        weights = weights * own
    return weights / weights.sum()


def source_weights(names: list[str], weights: dict[str, float]) -> np.ndarray:
    """Look up the weight of every source: the longest matching beginning of its name decides, 1 where none matches.

    A weight of 0 leaves a source out. Returns float64[S].
    """
    found = []
    for name in names:
        matches = [prefix for prefix in weights if name.startswith(prefix)]
        found.append(weights[max(matches, key=len)] if matches else 1.0)
    return np.array(found, dtype=np.float64)


def build_mixture(
    corpus: Corpus,
    source_exponent: float,
    language_exponent: float,
    weights: dict[str, float],
    pair_weights: np.ndarray | None = None,
) -> Mixture:
    """Compute all odds once; weights are by the beginning of a source's name. Raises ValueError as source_odds does.

    pair_weights: float64[N], what the odds of each pair within its source are multiplied by.
    """
    source_count = len(corpus.sources)
    members = [np.flatnonzero(corpus.pair_source == source) for source in range(source_count)]
    counts = np.array([len(pair_numbers) for pair_numbers in members])
    own = [None if pair_weights is None else pair_weights[rows] for rows in members]
    cumulative = [
        np.cumsum(pair_odds(corpus.pair_language[rows], language_exponent, odds))
        for rows, odds in zip(members, own, strict=True)
    ]
    return Mixture(source_odds(counts, source_exponent, source_weights(corpus.sources, weights)), members, cumulative)


def first_without_shared_text(rows: np.ndarray) -> np.ndarray:
    """Choose rows, first come first kept, so that no text appears in two of them.

    rows: int[N, K] text numbers, NO_TEXT for none.  Returns int[M], the places of the rows kept.
    A shared text would be scored as a negative of its own pair.
    """
    seen: set[int] = set()
    kept = []
    for place, row in enumerate(rows.tolist()):
        texts = {text for text in row if text != NO_TEXT}
        if seen.isdisjoint(texts):
            seen |= texts
            kept.append(place)
    return np.array(kept, dtype=np.int64)


def draw_batch(
    corpus: Corpus,
    mixture: Mixture,
    batch_pairs: list[int],
    seed: int,
    step: int,
    one_language: Collection[int] = (),
) -> np.ndarray:
    """Draw the pair numbers of one step: one source, no text twice.

    batch_pairs: wanted rows, one number per source.   one_language: sources whose batches are in one language each,
    where another language would tell a wrong text apart before its words do.
    Returns int[B] with B at most that: a source with few distinct texts gives a smaller batch.
    """
    rng = np.random.default_rng([seed, step])
    source = int(rng.choice(len(mixture.source_odds), p=mixture.source_odds))
    places = np.searchsorted(mixture.cumulative[source], rng.random(SURPLUS * batch_pairs[source]), side="right")
    members = mixture.members[source]
    drawn = members[np.minimum(places, len(members) - 1)]
    if source in one_language:
        alike = np.flatnonzero(corpus.pair_language[members] == corpus.pair_language[drawn[0]])
        odds = np.diff(mixture.cumulative[source], prepend=0.0)[alike]
        count = min(len(drawn), int(np.count_nonzero(odds)))
        drawn = members[rng.choice(alike, count, replace=False, p=odds / odds.sum())]
    texts = np.column_stack([corpus.pairs[drawn], corpus.negatives[drawn]])
    return drawn[first_without_shared_text(texts)][: batch_pairs[source]]
