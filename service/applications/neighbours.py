"""Nearest neighbours by inner product, with faiss: exact, or by cells where there are too many texts for that."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
How = Literal["auto", "exact", "cells"]

# Exact search takes time by the square. Two cores with AVX-512 that do nothing else find 20,000 texts' neighbours among
# 20,000 in 2.2 s (384 components), which makes 3.7 minutes for 200,000.
EXACT_ROWS_MAX = 200_000
# Of the neighbours that an exact search gives, those that cells must find too, on a sample of the queries. Among
# 100,000 short sentences in 1,264 cells, 0.97 of the four nearest take a tenth of the cells and half the time of an
# exact search; 0.99 take two fifths of the cells, and longer than that.
RECALL_MIN = 0.95
# Of the neighbours of texts among themselves, where what is looked for is very near.
PAIRS_RECALL_MIN = 0.99
SAMPLE_QUERIES = 1000
# Vectors a cell that its centre is learned from; faiss warns below 39.
TRAINING_ROWS_A_CELL = 64
# What a range search holds at worst: both numbers' product of hits, 12 bytes each.
RANGE_QUERIES, RANGE_ROWS = 256, 65_536
CELL_QUERIES = 64


@dataclass(frozen=True)
class Neighbours:
    """For each query its nearest rows, best first.

    scores: float32[N, k].   numbers: int64[N, k].   recall: the share of the exact neighbours that was found, measured
    on a sample; 1 for an exact search.   index: what searched, for people.
    """

    scores: Vectors
    numbers: NDArray[np.int64]
    recall: float
    index: str


def nearest(queries: Vectors, base: Vectors, k: int, how: How = "auto") -> Neighbours:
    """The k rows of base [M, D] with the largest inner products for each of the queries [N, D]; k is at most M.

    Both contiguous, in memory or mapped from a file. Exact: memory for the result alone. Cells: a copy of base.
    """
    k = min(k, len(base))
    if how == "exact" or (how == "auto" and len(base) <= EXACT_ROWS_MAX):
        scores, numbers = faiss.knn(queries, base, k, metric=faiss.METRIC_INNER_PRODUCT)
        return Neighbours(scores, numbers, 1.0, "exact")
    index = cells_of(base)
    recall = open_cells(index, queries, base, k)
    scores, numbers = index.search(queries, k)
    # Cells with fewer than k rows between them leave places empty.
    short = np.flatnonzero((numbers < 0).any(axis=1))
    if len(short):
        scores[short], numbers[short] = faiss.knn(
            np.ascontiguousarray(queries[short]), base, k, metric=faiss.METRIC_INNER_PRODUCT
        )
    return Neighbours(scores, numbers, recall, f"{index.nlist} cells, {index.nprobe} looked into")


def cells_of(base: Vectors) -> faiss.IndexIVFFlat:
    """The rows of base in cells around centres learned from a sample of them; the same rows give the same cells."""
    rows, dimension = base.shape
    count = max(1, min(4 * math.isqrt(rows), rows // 39))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, count, faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).permutation(rows)[: count * TRAINING_ROWS_A_CELL]
    index.train(np.ascontiguousarray(base[np.sort(chosen)]))
    for start in range(0, rows, RANGE_ROWS):
        index.add(np.ascontiguousarray(base[start : start + RANGE_ROWS]))
    return index


def open_cells(index: faiss.IndexIVFFlat, queries: Vectors, base: Vectors, k: int, least: float = RECALL_MIN) -> float:
    """Have so many cells looked into that a share `least` of the exact neighbours are found. Returns the share found.

    Measured on a sample of the queries, against an exact search for them.
    """
    chosen = np.random.default_rng(1).permutation(len(queries))[:SAMPLE_QUERIES]
    sample = np.ascontiguousarray(queries[np.sort(chosen)])
    _, exact = faiss.knn(sample, base, k, metric=faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(8, index.nlist)
    while True:
        recall = recall_of(index.search(sample, k)[1], exact)
        if recall >= least or index.nprobe == index.nlist:
            return recall
        index.nprobe = min(math.ceil(index.nprobe * 1.5), index.nlist)


def recall_of(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """The share of the exact neighbours [N, k] that are among those found [N, k]."""
    return float((found[:, :, None] == exact[:, None, :]).any(axis=1).mean())


def pairs_within(
    vectors: Vectors, least: float, *, piece_rows: int = RANGE_ROWS, block_rows: int = RANGE_QUERIES
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Every two rows of [N, D] with an inner product above `least`, the lower number and the higher one.

    In pieces: no more than block_rows times piece_rows pairs are held, however many rows there are.
    """
    rows = len(vectors)
    for first in range(0, rows, piece_rows):
        piece = faiss.IndexFlatIP(vectors.shape[1])
        piece.add(np.ascontiguousarray(vectors[first : first + piece_rows]))
        last = min(first + piece_rows, rows)
        for start in range(0, last, block_rows):
            block = np.ascontiguousarray(vectors[start : min(start + block_rows, last)])
            ends, _, numbers = piece.range_search(block, least)
            lower = np.repeat(
                np.arange(start, start + len(block)), ends[1:].astype(np.int64) - ends[:-1].astype(np.int64)
            )
            higher = numbers + first
            kept = lower < higher
            yield lower[kept], higher[kept]


def pairs_in_cells(vectors: Vectors, least: float) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """As pairs_within, for too many rows to compare all: those that share cells, or lie in neighbouring ones.

    So many cells are looked into that PAIRS_RECALL_MIN of the four nearest rows are found; with a low threshold more
    of the pairs may be missed. A copy of the vectors is held, and at worst CELL_QUERIES times N pairs.
    """
    index = cells_of(vectors)
    open_cells(index, vectors, vectors, 4, PAIRS_RECALL_MIN)
    for start in range(0, len(vectors), CELL_QUERIES):
        block = np.ascontiguousarray(vectors[start : start + CELL_QUERIES])
        ends, _, numbers = index.range_search(block, least)
        lower = np.repeat(np.arange(start, start + len(block)), ends[1:].astype(np.int64) - ends[:-1].astype(np.int64))
        # From both sides each pair is found once or twice; once is enough.
        first, second = np.minimum(lower, numbers), np.maximum(lower, numbers)
        yield first[first < second], second[first < second]


def clusters(vectors: Vectors, count: int, seed: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Spherical k-means of [N, D] unit vectors: the centres, of length one, [count, D], and each row's centre, [N]."""
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=25,
        nredo=3 if len(vectors) < EXACT_ROWS_MAX // 10 else 1,
        spherical=True,
        seed=seed,
        # Without a bound faiss learns from 256 rows a centre; with one it warns where there are fewer than 39.
        min_points_per_centroid=1,
    )
    kmeans.train(vectors)
    _, numbers = kmeans.index.search(vectors, 1)
    return np.asarray(kmeans.centroids), numbers[:, 0]
