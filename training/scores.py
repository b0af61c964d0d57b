"""What a set of vectors is worth: the three measures of the evaluation, as pure functions of arrays.

Vectors are unit length wherever they come in here, so a dot product is the cosine.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

Vectors = NDArray[np.float32]


def nearest(sources: Vectors, targets: Vectors) -> NDArray[np.int64]:
    """For each source row the index of its nearest target row.

    sources: [N, D], targets: [M, D]. Returns [N]. The first of equal targets wins.
    """
    found: NDArray[np.int64] = np.argmax(sources @ targets.T, axis=1)
    return found


def bitext_scores(sources: Vectors, targets: Vectors) -> dict[str, float]:
    """How often row i of the sources finds row i of the targets among all of them.

    The F1 is mteb's: targets are classes, averaged with the weight of how often each is the right answer. It lies below
    the accuracy, because a target that attracts many sources loses precision.
    """
    found = nearest(sources, targets)
    gold = np.arange(len(sources))
    return {
        "accuracy": float(np.mean(found == gold)),
        "f1": float(f1_score(gold, found, average="weighted", zero_division=0)),
    }


def similarity_scores(firsts: Vectors, seconds: Vectors, judged: Sequence[float]) -> dict[str, float]:
    """Spearman's rank correlation of the cosines with what people said.

    firsts, seconds: [N, D], pair i is row i of both.   judged: [N], any scale.
    """
    cosines = np.einsum("nd,nd->n", firsts, seconds, dtype=np.float64)
    return {"spearman": float(spearmanr(cosines, judged).statistic)}


def retrieval_scores(queries: Vectors, documents: Vectors, relevant: Sequence[dict[int, int]]) -> dict[str, float]:
    """nDCG@10 and recall@100, averaged over the queries.

    queries: [N, D], documents: [M, D].   relevant: for each query the row of each relevant document and its grade.
    A query without a relevant document has no answer to find and is not counted.
    """
    asked = [row for row, grades in enumerate(relevant) if grades]
    ndcg, recall = [], []
    for row in asked:
        # A stable sort keeps equal documents in their own order, so that a run repeats to the last digit.
        ranking = np.argsort(-(documents @ queries[row]), kind="stable")[:100].tolist()
        ndcg.append(ndcg_at(10, ranking, relevant[row]))
        recall.append(len(relevant[row].keys() & set(ranking)) / len(relevant[row]))
    return {"ndcg@10": float(np.mean(ndcg)), "recall@100": float(np.mean(recall))}


def ndcg_at(depth: int, ranking: Sequence[int], grades: dict[int, int]) -> float:
    """Discounted gain of the first `depth` documents, divided by the best that any ranking could have.

    ranking: documents, best first.   grades: relevant document → grade > 0, itself the gain, as in trec_eval and mteb.
    """
    best = sorted(grades.values(), reverse=True)
    return _gain([grades.get(document, 0) for document in ranking[:depth]]) / _gain(best[:depth])


def _gain(grades: Sequence[int]) -> float:
    return float(sum(grade / np.log2(place + 2) for place, grade in enumerate(grades)))
