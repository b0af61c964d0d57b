"""A system without vectors: texts are near by the words that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from training.system import Identity, Nearness, Side


class WordCounts:
    """Counts of words, sparse; nearness is the share of a document's words that the query has, so not symmetric."""

    identity = Identity("word counts", "scikit-learn", "fp32", {}, None)

    def read(self, sides: Sequence[Side]) -> WordCountsReading:
        return WordCountsReading(CountVectorizer(token_pattern=r"\S+").fit([t for side in sides for t in side.texts]))


@dataclass(frozen=True)
class WordCountsReading:
    words: CountVectorizer

    def nearness(self, queries: Side, documents: Side) -> Nearness:
        asked, there = (self.features(side).sign() for side in (queries, documents))
        length = np.asarray(there.sum(axis=1)).ravel()
        return np.asarray((asked @ there.T).toarray() / np.maximum(length, 1), dtype=np.float32)

    def pair_nearness(self, firsts: Side, seconds: Side) -> NDArray[np.float64]:
        return np.diag(self.nearness(firsts, seconds)).astype(np.float64)

    def features(self, side: Side) -> csr_matrix:
        return csr_matrix(self.words.transform(side.texts), dtype=np.float32)
