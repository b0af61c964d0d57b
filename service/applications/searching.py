"""What finds the passages of an index: all vectors, a graph or cells over them, and the words, ranked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import bm25s
import faiss
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.applications.neighbours import RANGE_ROWS, SAMPLE_QUERIES, cells_of, open_cells, recall_of
from service.applications.passage_index import Passage, PassageIndex, Vectors
from service.applications.words import pieces_of
from service.errors import IndexUnusable, InvalidInput

Kind = Literal["all", "graph", "cells"]
# All vectors are compared up to so many passages: 77 MB of 384 components are read for a question then. A graph holds
# the vectors in memory a second time, with 272 bytes of edges each.
ALL_ROWS_MAX, GRAPH_ROWS_MAX = 50_000, 1_000_000
# HNSW: edges a passage, and how many candidates are kept while it is built (Malkov and Yashunin 2016).
EDGES, BUILDING_WIDTH = 32, 80
# Of the exact hits, those that a graph or cells must find, on a sample of the passages.
HITS_RECALL_MIN = 0.98
RECALL_HITS = 10
# Reciprocal rank fusion's constant (Cormack, Clarke, Büttcher, SIGIR 2009), and the hits of each that take part.
RANK_OFFSET, FUSED_HITS = 60, 100


@dataclass(frozen=True)
class Hit:
    """score: the cosine, or with words too the sum of reciprocal ranks.   passage: what was found."""

    score: float
    passage: Passage


def kind_for(count: int) -> Kind:
    """What searches among so many passages."""
    if count <= ALL_ROWS_MAX:
        return "all"
    return "graph" if count <= GRAPH_ROWS_MAX else "cells"


def with_nearest(index: PassageIndex, kind: Kind) -> tuple[PassageIndex, float]:
    """The index with the file that finds its nearest vectors, written, and its measured recall of the first ten.

    A graph or cells that were there already are added to; 1 is the recall where all vectors are compared.
    """
    vectors, manifest = index.vectors(), index.manifest
    if kind == "all":
        return PassageIndex(index.folder, replace(manifest, nearest=None)), 1.0
    found: Any
    if manifest.nearest is not None and manifest.nearest.startswith(f"nearest-{kind}-"):
        found = faiss.read_index(str(index.folder / manifest.nearest))
    elif kind == "graph":
        found = faiss.IndexHNSWFlat(manifest.dimension, EDGES, faiss.METRIC_INNER_PRODUCT)
        found.hnsw.efConstruction = BUILDING_WIDTH
    else:
        found = cells_of(vectors)
    for start in range(found.ntotal, len(vectors), RANGE_ROWS):
        found.add(np.ascontiguousarray(vectors[start : start + RANGE_ROWS]))
    recall = (
        _open_graph(found, vectors)
        if kind == "graph"
        else open_cells(found, vectors, vectors, RECALL_HITS, HITS_RECALL_MIN)
    )
    name = f"nearest-{kind}-{manifest.count}.faiss"
    faiss.write_index(found, str(index.folder / name))
    return PassageIndex(index.folder, replace(manifest, nearest=name)), recall


def _open_graph(graph: faiss.IndexHNSWFlat, vectors: Vectors) -> float:
    """Have so many candidates kept in a search that the graph finds what it should; a sample of passages asks."""
    chosen = np.random.default_rng(1).permutation(len(vectors))[:SAMPLE_QUERIES]
    sample = np.ascontiguousarray(vectors[np.sort(chosen)])
    _, exact = faiss.knn(sample, vectors, RECALL_HITS, metric=faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = 32
    while (recall := recall_of(graph.search(sample, RECALL_HITS)[1], exact)) < HITS_RECALL_MIN:
        if graph.hnsw.efSearch >= 1024:
            break
        graph.hnsw.efSearch *= 2
    return recall


def with_words(index: PassageIndex, tokenizer: Tokenizer) -> PassageIndex:
    """The index with BM25 over all its passages, written; all their words are held in memory meanwhile.

    With it the MRR@10 of XQuAD's questions in eight languages over the paragraphs of all goes from 0.72 to 0.84, and
    where the paragraph is in other languages alone from 0.39 to 0.37 (me5_nano, ranks fused;
    tests/benchmarks/topics_and_search.py).
    """
    texts = list(index.texts())
    ranker = bm25s.BM25()
    ranker.index(list(pieces_of(tokenizer, texts)), show_progress=False)
    name = f"words-{index.manifest.count}"
    ranker.save(str(index.folder / name), show_progress=False)
    return PassageIndex(index.folder, replace(index.manifest, words=name))


class Searcher:
    """An index opened for questions."""

    def __init__(self, index: PassageIndex, *, hybrid: bool = False) -> None:
        """Raises IndexUnusable where it has no passages, a file is gone, or hybrid is asked for and it has no words."""
        manifest = index.manifest
        if not manifest.count:
            raise IndexUnusable(f"{index.folder} holds no passages; add some: python -m service index FILE --to …")
        if hybrid and manifest.words is None:
            raise IndexUnusable(f"{index.folder} has no words; add them: python -m service index FILE --to … --words")
        self._index, self._vectors = index, index.vectors()
        try:
            self._nearest = faiss.read_index(str(index.folder / manifest.nearest)) if manifest.nearest else None
            self._ranker = bm25s.BM25.load(str(index.folder / str(manifest.words)), mmap=True) if hybrid else None
        except (RuntimeError, OSError, ValueError) as error:
            raise IndexUnusable(f"{index.folder} can't be opened: {error}; ask again, or index again") from error

    def search(self, vectors: Vectors, questions: Sequence[Sequence[str]], count: int) -> list[list[Hit]]:
        """The best hits of each question, best first. vectors: [N, D], of length one.   questions: their words."""
        if count < 1:
            raise InvalidInput(f"{count} hits are asked for; ask for 1 or more")
        count = min(count, self._index.manifest.count)
        if self._ranker is None:
            return [self._hits(*found) for found in zip(*self._nearest_of(vectors, count), strict=True)]
        depth = min(max(FUSED_HITS, count), self._index.manifest.count)
        by_vectors = self._nearest_of(vectors, depth)[1]
        return [
            self._hits(*fuse([near, by_words(self._ranker, words, depth)], count))
            for near, words in zip(by_vectors, questions, strict=True)
        ]

    def _nearest_of(self, vectors: Vectors, count: int) -> tuple[Vectors, NDArray[np.int64]]:
        if self._nearest is None:
            scores, numbers = faiss.knn(vectors, self._vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        else:
            scores, numbers = self._nearest.search(vectors, count)
        return scores, numbers

    def _hits(self, scores: NDArray[np.float64], numbers: NDArray[np.int64]) -> list[Hit]:
        # A graph or cells may find fewer.
        kept = [int(number) for number in numbers if number >= 0]
        return [Hit(float(score), passage) for score, passage in zip(scores, self._index.passages(kept), strict=False)]


def by_words(ranker: bm25s.BM25, words: Sequence[str], depth: int) -> NDArray[np.int64]:
    """The passages that share words with a question, best first, `depth` at most."""
    known = [word for word in words if word in ranker.vocab_dict]
    if not known:
        return np.empty(0, dtype=np.int64)
    found, scores = ranker.retrieve([known], k=depth, show_progress=False)
    return np.asarray(found[0][scores[0] > 0], dtype=np.int64)


def fuse(rankings: Sequence[NDArray[np.int64]], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Reciprocal rank fusion: the largest sums and their numbers, best first; of equal ones the smaller number."""
    numbers = np.concatenate(rankings)
    shares = np.concatenate([1.0 / (RANK_OFFSET + 1 + np.arange(len(ranking))) for ranking in rankings])
    kinds, inverse = np.unique(numbers, return_inverse=True)
    sums = np.bincount(inverse, shares).astype(np.float64)
    kept = kinds >= 0
    kinds, sums = kinds[kept], sums[kept]
    best = np.lexsort((kinds, -sums))[:count]
    return sums[best], kinds[best]
