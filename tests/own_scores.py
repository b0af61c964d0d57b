"""This project's figures of what a reading says, in one shape for the tests that compare them with mteb's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.scores import bitext_scores, retrieval_scores, similarity_scores
from training.system import Reading, Side


def own_bitext(reading: Reading, sources: Side, targets: Side) -> Mapping[str, float]:
    """Row i of the targets translates row i of the sources."""
    return bitext_scores(reading.features(sources), reading.features(targets))


def own_similarity(reading: Reading, firsts: Side, seconds: Side, judged: Sequence[float]) -> Mapping[str, float]:
    """judged: of each pair."""
    return similarity_scores(reading.features(firsts), reading.features(seconds), judged)


def own_retrieval(
    reading: Reading, queries: Side, documents: Side, relevant: Sequence[dict[int, int]]
) -> Mapping[str, float]:
    """relevant: for each query the row of each relevant document → grade."""
    return retrieval_scores(reading.features(queries), reading.features(documents), relevant)
