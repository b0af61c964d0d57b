"""Topics of texts in many languages: which texts belong together, and by which words to know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import silhouette_score

from service.applications.neighbours import Vectors, clusters
from service.errors import InvalidInput

Method = Literal["kmeans", "density"]
Numbers = NDArray[np.int64]
NOISE = -1
SEED = 0
# Numbers of topics that are tried where none is asked for.
COUNTS = (4, 6, 8, 10, 12, 16, 20, 25, 30, 40)
# Rows by which the number of topics is judged: it takes all distances among them.
JUDGED_ROWS = 3000
# HDBSCAN takes time by the square in so many dimensions as vectors have; what tells topics apart is in the first few.
DENSITY_ROWS_MAX, DENSITY_DIMENSIONS = 30_000, 15
WORDS = 5
# Of the words of one script, so that a topic in ten languages is not labelled in one alone.
EXAMPLES = 3


@dataclass(frozen=True)
class Topic:
    """rows: its texts, the one nearest to its middle first.   words: what it is about."""

    number: int
    rows: list[int]
    words: list[str]

    @property
    def label(self) -> str:
        """Its words in one line."""
        return ", ".join(self.words)


def centred(vectors: Vectors, languages: Sequence[str]) -> Vectors:
    """Vectors [N, D] less the mean of their language's, of length one again.

    What all texts of a language share is the language: without it, texts of one topic lie closer across languages.
    """
    found = np.array(vectors)
    kinds, inverse = np.unique(np.asarray(languages), return_inverse=True)
    for kind in range(len(kinds)):
        rows = inverse == kind
        found[rows] -= found[rows].mean(axis=0)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    # A language with one text is its own mean.
    return np.where(lengths > 1e-6, found / np.maximum(lengths, 1e-6), vectors).astype(np.float32)


def find_topics(vectors: Vectors, method: Method, count: int | None, least_texts: int) -> Numbers:
    """The topic of each row of [N, D], int64[N]; NOISE where it has none. The largest topic is number 0.

    count: of topics for "kmeans"; None takes the one of COUNTS with the best silhouette.   least_texts: a topic of
    "density" has at least so many. Raises InvalidInput where there are fewer texts than that takes.
    """
    rows = len(vectors)
    if method == "density":
        if rows > DENSITY_ROWS_MAX:
            raise InvalidInput(
                f"{rows} texts, and topics by density are found among {DENSITY_ROWS_MAX} at most; use --method kmeans"
            )
        if not 2 <= least_texts <= rows:
            raise InvalidInput(f"--least-texts {least_texts}: it must be from 2 to the number of texts, {rows}")
        flat = PCA(min(DENSITY_DIMENSIONS, *vectors.shape), random_state=SEED).fit_transform(vectors)
        found = HDBSCAN(min_cluster_size=least_texts, copy=True).fit_predict(flat)
        return by_size(np.asarray(found, dtype=np.int64))
    if count is not None:
        if not 2 <= count <= rows:
            raise InvalidInput(f"--topics {count}: it must be from 2 to the number of texts, {rows}")
        return by_size(clusters(vectors, count, SEED)[1])
    tried = [clusters(vectors, count, SEED)[1] for count in COUNTS if count * 4 <= rows]
    if not tried:
        raise InvalidInput(
            f"{rows} texts are too few to find topics in; {4 * COUNTS[0]} are the least, or say --topics"
        )
    return by_size(max(tried, key=lambda numbers: _silhouette(vectors, numbers)))


def _silhouette(vectors: Vectors, numbers: Numbers) -> float:
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(vectors))[:JUDGED_ROWS])
    if len(np.unique(numbers[chosen])) < 2:
        return -1.0
    return float(silhouette_score(vectors[chosen], numbers[chosen], metric="cosine"))


def by_size(numbers: Numbers) -> Numbers:
    """Topics numbered anew, the largest first; noise stays noise."""
    kinds, counts = np.unique(numbers[numbers != NOISE], return_counts=True)
    places = {int(kind): place for place, kind in enumerate(kinds[np.argsort(-counts, kind="stable")])}
    return np.array([places.get(int(number), NOISE) for number in numbers], dtype=np.int64)


def describe(vectors: Vectors, numbers: Numbers, words: Sequence[Sequence[str]]) -> list[Topic]:
    """The topics, largest first, with the words that tell them from each other. words: of each text."""
    count = int(numbers.max()) + 1
    labels = characteristic_words(words, numbers, count)
    topics = []
    for number in range(count):
        rows = np.flatnonzero(numbers == number)
        nearness = vectors[rows] @ vectors[rows].mean(axis=0)
        topics.append(Topic(number, rows[np.argsort(-nearness, kind="stable")].tolist(), labels[number]))
    return topics


def characteristic_words(words: Sequence[Sequence[str]], numbers: Numbers, count: int) -> list[list[str]]:
    """For each topic the words that are frequent in it and rare in the others, best first.

    Class-based TF-IDF (Grootendorst 2022, "BERTopic", arXiv 2203.05794): a topic's texts are one document, and a word
    of frequency tf in it and f in all weighs tf · log(1 + A ÷ f), A words being in a topic on average. Counted is in
    how many texts a word is, so that one long text does not name a topic.
    """
    counter = CountVectorizer(analyzer=list, binary=True, dtype=np.float64)
    try:
        by_text = csr_array(counter.fit_transform(words))
    except ValueError:
        # No text has a word: digits, or signs alone.
        return [[] for _ in range(count)]
    kept = np.flatnonzero(numbers != NOISE)
    members = csr_array((np.ones(len(kept)), (numbers[kept], kept)), shape=(count, len(words)))
    by_topic = (members @ by_text).tocsr()
    total = np.asarray(by_topic.sum(axis=0)).ravel()
    usual = by_topic.sum() / count
    share = np.asarray(by_topic.sum(axis=1)).ravel()
    names = counter.get_feature_names_out()
    found = []
    for topic in range(count):
        row = by_topic[[topic], :].tocoo()
        columns = row.coords[1]
        weights = row.data / max(share[topic], 1) * np.log1p(usual / total[columns])
        # A word of one text says nothing of the topic, unless there is no other.
        weights = np.where(row.data > 1, weights, weights * 1e-6)
        best = np.lexsort((names[columns], -weights))[:WORDS]
        found.append([str(name) for name in names[columns[best]]])
    return found
