"""The measures of bitext mining, similarity and retrieval, against numbers worked out by hand or by a library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

from training.errors import DataError
from training.scores import (
    bitext_scores,
    ndcg_at,
    nearest,
    nearest_by_margin,
    retrieval_scores,
    similarity_scores,
)

Vectors = NDArray[np.float32]


def at_angles(*degrees: float) -> Vectors:
    """Unit vectors in the plane: the nearer two angles, the larger the cosine."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def cosines(left: Vectors, right: Vectors) -> Vectors:
    return left @ right.T


def test_bitext_f1_is_below_accuracy_when_one_target_attracts_too_many() -> None:
    # Sources 0 and 1 both find target 0; source 2 finds its own.
    scores = bitext_scores([cosines(at_angles(0, 10, 90), at_angles(0, 40, 90))]).measures
    assert scores["accuracy"] == pytest.approx(2 / 3)
    # Classes: target 0 precision 1/2, recall 1, F1 2/3; target 1 never found, 0; target 2 F1 1. Mean of the three.
    assert scores["f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_the_way_back_is_asked_of_the_targets() -> None:
    sources, targets = at_angles(0, 10, 90), at_angles(0, 40, 90)
    scores = bitext_scores([cosines(sources, targets)], [cosines(targets, sources)]).measures
    # Target 1 at 40 degrees finds source 1 at 10 degrees: on the way back all are right.
    assert (scores["accuracy"], scores["reverse accuracy"]) == (pytest.approx(2 / 3), 1)


def test_the_margin_passes_over_a_target_that_is_near_to_everything() -> None:
    nearness = np.array([[0.9, 0.8, 0.1], [0.8, 0.1, 0.2], [0.85, 0.1, 0.7]], dtype=np.float32)
    assert nearest([nearness]).tolist() == [0, 0, 0]
    # Two nearest each. Rows' means: .85, .5, .775; columns' means: .875, .45, .45. Row 0: .9 / .8625 against
    # .8 / .65; row 1: .8 / .6875 against .2 / .475; row 2: .85 / .825 against .7 / .6125.
    plain, by_margin = nearest_by_margin([nearness], k=2)
    assert (plain.tolist(), by_margin.tolist()) == ([0, 0, 0], [1, 0, 2])


def test_the_margin_agrees_with_its_definition_written_as_loops() -> None:
    rng = np.random.default_rng(3)
    nearness = rng.uniform(0.5, 1, (30, 30)).astype(np.float32)
    row_means = [np.mean(sorted(row, reverse=True)[:4]) for row in nearness]
    column_means = [np.mean(sorted(column, reverse=True)[:4]) for column in nearness.T]
    # The same in one block, and in blocks of fewer rows than the four that count.
    whole, blocks = nearest_by_margin([nearness])[1], nearest_by_margin(np.split(nearness, range(3, 30, 3)))[1]
    np.testing.assert_array_equal(whole, blocks)
    for row, found in enumerate(whole):
        candidates = sorted(range(30), key=lambda column: -nearness[row, column])[:4]
        margins = {c: nearness[row, c] / ((row_means[row] + column_means[c]) / 2) for c in candidates}
        assert found == max(margins, key=margins.get)


def test_nothing_shared_is_no_margin_and_no_number_gets_lost() -> None:
    nothing = np.zeros((5, 5), dtype=np.float32)
    scores = bitext_scores([nothing], [nothing]).measures
    assert scores["margin accuracy"] == scores["accuracy"] == pytest.approx(1 / 5)  # the first of equal ones


def test_similarity_is_the_correlation_of_ranks_and_not_of_values() -> None:
    near = np.cos(np.radians([1.0, 2, 3, 80]))
    assert similarity_scores(near, [5, 4, 3, 2]).measures["spearman"] == pytest.approx(1)
    # One swap of neighbours in four ranks: 1 - 6 * 2 / (4 * 15).
    assert similarity_scores(near, [4, 5, 3, 2]).measures["spearman"] == pytest.approx(0.8)


def test_a_system_that_finds_all_pairs_equally_near_correlates_with_nothing() -> None:
    assert similarity_scores(np.zeros(4), [4, 5, 3, 2]).measures["spearman"] == 0


def test_ndcg_of_a_single_answer_falls_with_the_logarithm_of_its_place() -> None:
    assert ndcg_at(10, [7, 8, 9], {7: 1}) == 1
    assert ndcg_at(10, [8, 9, 7], {7: 1}) == pytest.approx(1 / math.log2(4))
    assert ndcg_at(2, [8, 9, 7], {7: 1}) == 0


def test_ndcg_agrees_with_scikit_learn_on_graded_answers() -> None:
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 4, 40)
    similarity = rng.standard_normal(40)
    ranking = np.argsort(-similarity).tolist()
    ours = ndcg_at(10, ranking, {place: int(grade) for place, grade in enumerate(grades) if grade})
    assert ours == pytest.approx(ndcg_score(grades[None], similarity[None], k=10))


def test_retrieval_averages_over_the_queries_that_have_an_answer() -> None:
    nearness = cosines(at_angles(0, 90, 45), at_angles(0, 30, 60, 90))
    scores = retrieval_scores([nearness], [{0: 1}, {2: 1}, {}])
    assert scores.measures["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert scores.measures["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores.measures["recall@100"] == 1
    assert [len(values) for values in scores.examples.values()] == [2, 2, 2]


def test_retrieval_where_no_query_has_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="no query has an answer"):
        retrieval_scores([cosines(at_angles(0), at_angles(0, 30))], [{}])


def test_recall_counts_only_the_first_hundred_documents_and_mrr_the_first_ten() -> None:
    nearness = cosines(at_angles(0), at_angles(*np.linspace(0, 90, 150)))
    assert retrieval_scores([nearness], [{99: 1, 100: 1}]).measures["recall@100"] == 0.5
    assert retrieval_scores([nearness], [{9: 1}]).measures["mrr@10"] == 0.1
    assert retrieval_scores([nearness], [{10: 1}]).measures["mrr@10"] == 0


def test_equally_near_documents_are_ranked_in_their_own_order() -> None:
    near = np.array([[0.5, 0.7, 0.7, 0.7]], dtype=np.float32)
    assert retrieval_scores([near], [{2: 1}]).measures["mrr@10"] == 1 / 2
