"""Topics of texts in many languages: which texts belong together, and by which words to know them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.cluster import HDBSCAN
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from service.applications.neighbours import Vectors, clusters
from service.errors import InvalidInput

Method = Literal["kmeans", "density"]
Numbers = NDArray[np.int64]
# Places in the plane, float64[N, 2].
Places = NDArray[np.float64]
NOISE = -1
SEED = 0
# Numbers of topics that are tried where none is asked for.
COUNTS = (4, 6, 8, 10, 12, 16, 20, 25, 30, 40)
# Rows by which the number of topics is judged: it takes all distances among them.
JUDGED_ROWS = 3000
# The plane's layout takes time by N log N, a thousand times over.
PLANE_ROWS_MAX = 8000
THREADED_ROWS = 1000
WORDS = 6
# The mean of fewer texts is more their topics than their language.
LANGUAGE_TEXTS_MIN = 10


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

    What all texts of a language share is the language, and without it texts of one topic lie closer across languages:
    of the 240 paragraphs of XQuAD in eight languages, in 48 topics, 84 % of a paragraph's translations come into one
    topic, and 47 % otherwise (me5_nano, tests/benchmarks/topics_and_search.py). Languages with few texts share one
    mean.
    """
    counts = Counter(languages)
    kinds = np.asarray([language if counts[language] >= LANGUAGE_TEXTS_MIN else "" for language in languages])
    found = np.array(vectors)
    for kind in np.unique(kinds):
        rows = kinds == kind
        found[rows] -= found[rows].mean(axis=0)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    # A text that is its own mean keeps the vector it had.
    return np.where(lengths > 1e-6, found / np.maximum(lengths, 1e-6), vectors).astype(np.float32)


def lay_out(vectors: Vectors) -> Places:
    """A place in the plane for each row of [N, D]: t-SNE, which keeps neighbours together. The same rows, the same."""
    if len(vectors) < 4:
        return np.stack([np.arange(len(vectors)), np.zeros(len(vectors))], axis=1)
    # Its default of 30 neighbours, or a third of what there is.
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    layout = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=SEED, n_jobs=-1)
    # Threads that wait for each other at every step spend more than they save where there is little to do.
    with threadpool_limits(1 if len(vectors) < THREADED_ROWS else None, user_api="openmp"):
        return np.asarray(layout.fit_transform(vectors), dtype=np.float64)


def by_kmeans(vectors: Vectors, count: int | None) -> Numbers:
    """The topic of each row of [N, D], int64[N], the largest topic first; by spherical k-means.

    count: of topics; None takes the one of COUNTS with the best silhouette. Raises InvalidInput for too few texts.
    """
    rows = len(vectors)
    if count is not None:
        if not 2 <= count <= rows:
            raise InvalidInput(f"--topics {count}: it must be from 2 to the number of texts, {rows}")
        return by_size(clusters(vectors, count, SEED)[1])
    tried = [clusters(vectors, count, SEED)[1] for count in COUNTS if count * 4 <= rows]
    if not tried:
        raise InvalidInput(
            f"{rows} texts are too few to find the number of topics by; {4 * COUNTS[0]} are the least, or say --topics"
        )
    return by_size(max(tried, key=lambda numbers: _silhouette(vectors, numbers)))


def by_density(places: Places, least_texts: int) -> Numbers:
    """The topic of each place [N, 2], NOISE for those that lie apart: HDBSCAN over the plane of `lay_out`.

    Over the vectors themselves it finds little, as in hundreds of dimensions all distances are much alike: of XQuAD's
    1,920 texts it leaves 84 % in no topic, over the plane 38 % (me5_nano, tests/benchmarks/topics_and_search.py).
    """
    rows = len(places)
    if rows > PLANE_ROWS_MAX:
        raise InvalidInput(f"{rows} texts: by density it takes {PLANE_ROWS_MAX} at most; use --method kmeans")
    if not 2 <= least_texts <= rows:
        raise InvalidInput(f"--least-texts {least_texts}: it must be from 2 to the number of texts, {rows}")
    found = by_size(np.asarray(HDBSCAN(min_cluster_size=least_texts, copy=True).fit_predict(places), dtype=np.int64))
    if found.max() == NOISE:
        raise InvalidInput(f"no topic of {least_texts} texts or more stands out; give a smaller --least-texts")
    return found


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
    """For each topic the words that are in many of its texts and in few of the others, best first.

    As in class-based TF-IDF (Grootendorst 2022, "BERTopic", arXiv 2203.05794) a topic's texts are one document. A word
    in a share p of them and q of all others weighs p · log(p ÷ q), its part of the Kullback-Leibler divergence: that
    of a word which is everywhere is 0, so no language needs a list of stop words.
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
    everywhere = np.asarray(by_text.sum(axis=0)).ravel()
    sizes = np.bincount(numbers[kept], minlength=count)
    names = counter.get_feature_names_out()
    found = []
    for topic in range(count):
        row = by_topic[[topic], :].tocoo()
        columns, there = row.coords[1], row.data
        # Half a text more: a word that the others lack altogether is not infinitely telling.
        elsewhere = (everywhere[columns] - there + 0.5) / (len(words) - sizes[topic] + 1)
        share = there / sizes[topic]
        best = np.lexsort((names[columns], -share * np.log(share / elsewhere)))[:WORDS]
        found.append([str(name) for name in names[columns[best]]])
    return found
