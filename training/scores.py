"""What nearness is worth: the measures of bitext mining, similarity and retrieval, as pure functions of arrays.

Each gives its measures, and the values by example that they come from: `training.resampling` recomputes a measure from
these for any drawing of the examples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from training.errors import DataError
from training.system import Nearness

Examples = Mapping[str, NDArray[np.generic]]  # name → a value for each example


@dataclass(frozen=True)
class Scored:
    """measures: name → value.   examples: name → [N], a value for each example that counts."""

    measures: Mapping[str, float]
    examples: Examples


def nearest(blocks: Iterable[Nearness]) -> NDArray[np.int64]:
    """For each row the index of its nearest column, int64[N]; the first of equal ones wins.

    blocks: the rows of nearness[N, M], some at a time.
    """
    return np.concatenate([np.argmax(block, axis=1) for block in blocks])


def bitext_scores(forward: Iterable[Nearness], backward: Iterable[Nearness] | None = None) -> Scored:
    """How often row i of the sources finds row i of the targets among all of them.

    forward: nearness [N, N] of all targets to each source, some sources at a time.   backward: of all sources to each
    target; with it the way back is measured too, and the search by ratio margin. The F1 is mteb's: targets are
    classes, averaged with the weight of how often each is the right answer. It lies below the accuracy, because a
    target that attracts many sources loses precision.
    """
    if backward is None:
        found = {"": nearest(forward)}
    else:
        plain, by_margin = nearest_by_margin(forward)
        found = {"": plain, "margin ": by_margin, "reverse ": nearest(backward)}
    measures: dict[str, float] = {}
    for way, rows in found.items():
        gold = np.arange(len(rows))
        measures[f"{way}accuracy"] = float(np.mean(rows == gold))
        measures[f"{way}f1"] = float(f1_score(gold, rows, average="weighted", zero_division=0))
    return Scored(measures, {f"{way}found": _small(rows) for way, rows in found.items()})


def nearest_by_margin(blocks: Iterable[Nearness], k: int = 4) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the nearest column, and of its k nearest the one with the largest ratio margin, int64[N] both.

    The margin is a pair's nearness, divided by the average of two means: the row's k nearest columns', and the
    column's k nearest rows' (Artetxe and Schwenk 2019, "ratio"; LASER's xsim has the same k).
    blocks: the rows of nearness[N, M], some at a time.
    """
    parts, nears = [], []
    attracted: Nearness | None = None  # the k nearest rows of each column so far, [≤ k, M]
    for block in blocks:
        parts.append(np.argsort(-block, axis=1, kind="stable")[:, :k])
        nears.append(np.take_along_axis(block, parts[-1], axis=1))
        seen = block if attracted is None else np.concatenate([attracted, block])
        attracted = -np.partition(-seen, min(k, len(seen)) - 1, axis=0)[:k]
    assert attracted is not None
    candidates, near = np.concatenate(parts), np.concatenate(nears).astype(np.float64)
    usual = (near.mean(axis=1, keepdims=True) + attracted.astype(np.float64).mean(axis=0)[candidates]) / 2
    # Words that nothing shares are 0 near to everything: no margin then.
    margin = np.divide(near, usual, out=np.zeros_like(near), where=usual != 0)
    best = np.argmax(margin, axis=1)
    return candidates[:, 0], candidates[np.arange(len(candidates)), best]


def similarity_scores(nearness: NDArray[np.float64], judged: Sequence[float]) -> Scored:
    """Spearman's rank correlation of the nearness of each pair with what people said; of constant values it is 0.

    nearness: [N].   judged: [N], any scale.
    """
    constant = len(set(judged)) < 2 or float(np.ptp(nearness)) == 0
    spearman = 0.0 if constant else float(spearmanr(nearness, judged).statistic)
    return Scored({"spearman": spearman}, {"nearness": nearness, "judged": np.asarray(judged, dtype=np.float32)})


def retrieval_scores(blocks: Iterable[Nearness], relevant: Sequence[dict[int, int]]) -> Scored:
    """nDCG@10, recall@100 and MRR@10, averaged over the queries.

    blocks: the nearness [Q, D] of all documents to the queries, some queries at a time.   relevant: for each query
    the row of each relevant document and its grade. A query without a relevant document has no answer to find and is
    not counted. Raises DataError where none has.
    """
    if not any(relevant):
        raise DataError("no query has an answer among its documents")
    found: dict[str, list[float]] = {"ndcg@10": [], "recall@100": [], "mrr@10": []}
    asked = iter(relevant)
    for block in blocks:
        # A stable sort keeps equal documents in their own order, so that a run repeats to the last digit.
        rankings = np.argsort(-block, axis=1, kind="stable")[:, :100].tolist()
        for ranking, grades in zip(rankings, asked, strict=False):
            if grades:
                found["ndcg@10"].append(ndcg_at(10, ranking, grades))
                found["recall@100"].append(len(grades.keys() & set(ranking)) / len(grades))
                found["mrr@10"].append(reciprocal_rank(ranking[:10], grades))
    examples = {name: np.asarray(values) for name, values in found.items()}
    return Scored({name: float(np.mean(values)) for name, values in examples.items()}, examples)


def ndcg_at(depth: int, ranking: Sequence[int], grades: dict[int, int]) -> float:
    """Discounted gain of the first `depth` documents, divided by the best that any ranking could have.

    ranking: documents, best first.   grades: relevant document → grade > 0, itself the gain, as in trec_eval and mteb.
    """
    best = sorted(grades.values(), reverse=True)
    return _gain([grades.get(document, 0) for document in ranking[:depth]]) / _gain(best[:depth])


def reciprocal_rank(ranking: Sequence[int], grades: dict[int, int]) -> float:
    """1 / the place of the first relevant document, 0 where there is none."""
    return next((1 / place for place, document in enumerate(ranking, start=1) if document in grades), 0.0)


def _gain(grades: Sequence[int]) -> float:
    return float(sum(grade / np.log2(place + 2) for place, grade in enumerate(grades)))


def _small(rows: NDArray[np.int64]) -> NDArray[np.integer]:
    """The same numbers in as few bytes as they fit in: results hold one for each example."""
    return rows.astype(np.min_scalar_type(int(rows.max(initial=0))))
