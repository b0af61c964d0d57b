"""A set's measure, recomputed for thousands of drawings of its examples: how far chance alone could move it.

A drawing is how often each example is in it. Every measure here is a function of such counts, so that both systems are
measured on the same drawing, and thousands of drawings are a few products of matrices.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from training.eval_shapes import Task
from training.scores import Examples

Counts = NDArray[np.float64]  # [B, N]: how often each of N examples is in each of B drawings
Statistic = Callable[[Counts], NDArray[np.float64]]
# Of counts that are held at once: 64 MiB.
DRAWN_CELLS = 1 << 23


def statistic(task: Task, examples: Examples) -> Statistic:
    """The main measure of a subset as a function of counts[B, N] → [B]."""
    match task:
        case "bitext":
            found = examples["found"]
            return mean_statistic((found == np.arange(len(found))).astype(np.float64))
        case "similarity":
            return spearman_statistic(examples["nearness"], examples["judged"])
        case "retrieval":
            return mean_statistic(examples["ndcg@10"])
        case "classification":
            return mean_statistic(examples["hits"])
        case "clustering":
            return v_measure_statistic(examples["topic"], examples["cluster"])


def mean_statistic(values: NDArray[np.generic]) -> Statistic:
    """The mean of the values.   values: [N]."""
    column = values.astype(np.float64)
    # A drawing has as many examples as there are.
    return lambda counts: counts @ column / len(column)


def spearman_statistic(first: NDArray[np.generic], second: NDArray[np.generic]) -> Statistic:
    """Spearman's rank correlation; ranks are of the drawing, equal ones share the middle.   first, second: [N]."""
    ways = [_ranking(first), _ranking(second)]

    def of(counts: Counts) -> NDArray[np.float64]:
        total = counts.sum(axis=1, keepdims=True)
        centred = []
        for rank in ways:
            ranks = rank(counts)
            centred.append(ranks - (counts * ranks).sum(axis=1, keepdims=True) / total)
        one, other = centred
        spread = np.sqrt((counts * one**2).sum(axis=1) * (counts * other**2).sum(axis=1))
        shared = (counts * one * other).sum(axis=1)
        return np.divide(shared, spread, out=np.zeros_like(shared), where=spread > 0)

    return of


def _ranking(values: NDArray[np.generic]) -> Callable[[Counts], NDArray[np.float64]]:
    """The rank of each value in a drawing, [B, N]: the middle of the places that it and its equals take."""
    distinct, group = np.unique(values, return_inverse=True)
    members = csr_matrix((np.ones(len(group)), (np.arange(len(group)), group)), shape=(len(group), len(distinct)))

    def rank(counts: Counts) -> NDArray[np.float64]:
        size = counts @ members
        return (np.cumsum(size, axis=1) - size / 2)[:, group]

    return rank


def v_measure_statistic(topics: NDArray[np.generic], clusters: NDArray[np.generic]) -> Statistic:
    """V-measure of the clusters as they are: texts are drawn again, not clustered again.   topics, clusters: [N]."""
    rows, columns = np.unique(topics, return_inverse=True)[1], np.unique(clusters, return_inverse=True)[1]
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    cell = csr_matrix(
        (np.ones(len(rows)), (np.arange(len(rows)), rows * shape[1] + columns)), (len(rows), shape[0] * shape[1])
    )

    def of(counts: Counts) -> NDArray[np.float64]:
        joint = (counts @ cell / counts.sum(axis=1, keepdims=True)).reshape(-1, *shape)
        topic, cluster = _entropy(joint.sum(axis=2)), _entropy(joint.sum(axis=1))
        shared = topic + cluster - _entropy(joint.reshape(len(joint), -1))
        # The harmonic mean of shared / topic and shared / cluster, which is 1 where both are certain.
        return np.divide(2 * shared, topic + cluster, out=np.ones_like(shared), where=topic + cluster > 0)

    return of


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, in nats."""
    return -(shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0)).sum(axis=1)


def drawings(count: int, resamples: int, rng: np.random.Generator) -> Iterator[Counts]:
    """Counts of `resamples` drawings of as many examples as there are, some drawings at a time."""
    step = max(1, DRAWN_CELLS // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        places = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def resampled_difference(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    counts: Mapping[str, int],
    *,
    parallel: bool,
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """How much more the second system has than the first, averaged over the subsets, in each drawing, float64[R].

    counts: examples of each subset.   parallel: the subsets are the same examples in other languages, so that one
    drawing is used for all; otherwise each subset's examples are drawn on their own.
    """
    groups = [list(counts)] if parallel and len(set(counts.values())) == 1 else [[name] for name in counts]
    total = np.zeros(resamples)
    for names in groups:
        done = 0
        for drawn in drawings(counts[names[0]], resamples, rng):
            total[done : done + len(drawn)] += sum(second[name](drawn) - first[name](drawn) for name in names)
            done += len(drawn)
    difference: NDArray[np.float64] = total / len(counts)
    return difference
