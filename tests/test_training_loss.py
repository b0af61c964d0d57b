"""InfoNCE and the distance of cosines against numbers worked out by hand."""

import math

import pytest
import torch

from training.loss import cosine_distance, info_nce, info_nce_both_ways, similarity_divergence


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def test_orthogonal_pairs_cost_the_softmax_of_one_against_zero():
    pairs = unit([1.0, 0.0], [0.0, 1.0])
    assert info_nce(pairs, pairs, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)


def test_rows_of_the_same_meaning_are_not_counted_as_wrong():
    pairs = unit([1.0, 0.0], [1.0, 0.0])
    same = torch.ones(2, 2, dtype=torch.bool)
    assert info_nce(pairs, pairs, 0.01, same_meaning=same).item() == pytest.approx(0.0, abs=1e-6)


def test_both_ways_is_the_mean_of_the_two_directions():
    left, right = unit([1.0, 0.2], [0.3, 1.0]), unit([0.9, 0.1], [0.5, 0.5])
    expected = 0.5 * (info_nce(left, right, 0.1) + info_nce(right, left, 0.1))
    assert info_nce_both_ways(left, right, 0.1).item() == pytest.approx(expected.item())


def test_cosine_distance_is_zero_for_equal_and_two_for_opposite_vectors():
    vectors = unit([1.0, 2.0], [0.0, 1.0])
    assert cosine_distance(vectors, vectors).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine_distance(-vectors, vectors).item() == pytest.approx(2.0, abs=1e-6)


def test_passages_behind_the_batch_are_wrong_for_every_query_and_ask_nothing_themselves():
    drawn = torch.Generator().manual_seed(0)
    left, right, more = (unit(*torch.randn(count, 8, generator=drawn).tolist()) for count in (4, 4, 3))
    whole = torch.cat([right, more])
    expected = 0.5 * (info_nce(left, whole, 0.1) + info_nce(right, left, 0.1))
    assert info_nce_both_ways(left, whole, 0.1).item() == pytest.approx(expected.item())
    assert info_nce(left, whole, 0.1) > info_nce(left, right, 0.1)
    as_good = torch.zeros(4, 7, dtype=torch.bool)
    as_good[:, 4:] = True
    without = info_nce_both_ways(left, right, 0.1)
    assert info_nce_both_ways(left, whole, 0.1, same_meaning=as_good).item() == pytest.approx(without.item())


def test_the_teachers_own_vectors_have_no_divergence_and_all_others_some():
    drawn = torch.Generator().manual_seed(0)
    own, partners, more = (unit(*torch.randn(count, 8, generator=drawn).tolist()) for count in (4, 4, 3))
    goals = torch.cat([partners, more])
    assert similarity_divergence(own, own, goals, 0.05).item() == pytest.approx(0.0, abs=1e-6)
    assert similarity_divergence(partners, own, goals, 0.05) > 0.1


def test_divergence_is_that_of_two_softmaxes_worked_out_by_hand():
    own, seen = unit([1.0, 0.0]), unit([0.0, 1.0])
    goals = unit([1.0, 0.0], [0.0, 1.0])
    # The teacher sees cosines (1, 0), the student (0, 1), at temperature 1; back there is one row and nothing to tell.
    high, low = math.e / (1 + math.e), 1 / (1 + math.e)
    expected = 0.5 * (high * math.log(high / low) + low * math.log(low / high))
    assert similarity_divergence(seen, own, goals, 1.0).item() == pytest.approx(expected, abs=1e-6)
