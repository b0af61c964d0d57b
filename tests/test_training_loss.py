"""InfoNCE and distillation against numbers worked out by hand."""

import math

import pytest
import torch

from training.loss import cosine_distance, distillation, info_nce, info_nce_both_ways


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def test_orthogonal_pairs_cost_the_softmax_of_one_against_zero():
    pairs = unit([1.0, 0.0], [0.0, 1.0])
    assert info_nce(pairs, pairs, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)


def test_a_hard_negative_adds_one_wrong_answer_to_every_query():
    pairs = unit([1.0, 0.0], [0.0, 1.0])
    wrong = unit([1.0, 1.0])
    expected = math.log(1 + math.exp(-1) + math.exp(math.sqrt(0.5) - 1))
    assert info_nce(pairs, pairs, 1.0, wrong).item() == pytest.approx(expected, abs=1e-6)


def test_rows_of_the_same_meaning_are_not_counted_as_wrong():
    pairs = unit([1.0, 0.0], [1.0, 0.0])
    same = torch.ones(2, 2, dtype=torch.bool)
    assert info_nce(pairs, pairs, 0.01, same_meaning=same).item() == pytest.approx(0.0, abs=1e-6)


def test_both_ways_is_the_mean_of_the_two_directions():
    left, right = unit([1.0, 0.2], [0.3, 1.0]), unit([0.9, 0.1], [0.5, 0.5])
    expected = 0.5 * (info_nce(left, right, 0.1) + info_nce(right, left, 0.1))
    assert info_nce_both_ways(left, right, 0.1).item() == pytest.approx(expected.item())


def test_distillation_is_zero_for_the_teachers_own_ranking_in_any_space():
    teacher = unit([1.0, 2.0], [0.0, 1.0], [-1.0, 1.0])
    turned = teacher @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert distillation(turned @ turned.T, teacher @ teacher.T, 0.05).item() == pytest.approx(0.0, abs=1e-5)


def test_distillation_is_the_kl_divergence_of_the_two_softmaxes():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation(student, teacher, 1.0).item() == pytest.approx(expected, abs=1e-6)


def test_cosine_distance_is_zero_for_equal_and_two_for_opposite_vectors():
    vectors = unit([1.0, 2.0], [0.0, 1.0])
    assert cosine_distance(vectors, vectors).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine_distance(-vectors, vectors).item() == pytest.approx(2.0, abs=1e-6)
