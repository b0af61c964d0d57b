"""What a path is led to: the teacher where it knows the text, the partner where it does not."""

import numpy as np
import pytest
import torch

from training.bootstrap_config import DistilConfig
from training.distil_loss import Given, GivenPassages, Plan, lead, passage_loss, path_loss, plan
from training.loss import cosine_distance, info_nce_both_ways, similarity_divergence
from training.targets import NO_TARGET

CONFIG = DistilConfig(
    steps=1, tokens_per_batch=1, batch_pairs_max=2, learning_rate=1e-3, token_learning_rate=1e-3, pull_weight=2.0
)


def vectors(count: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def plan_of(taught: list[bool], read_right: list[int]) -> Plan:
    numbers = np.arange(len(taught))
    targets = np.where(np.array(taught)[:, None], numbers[:, None] + 100, NO_TARGET) + np.zeros((1, 2), dtype=np.int64)
    return Plan(numbers, numbers + 50, np.array(read_right, dtype=np.int64), targets)


def test_a_student_with_the_teachers_vectors_has_nothing_to_learn():
    given = Given(vectors(3, 0), vectors(3, 1), vectors(5, 2))
    loss = path_loss(given.left, given.right[[1]], plan_of([True] * 3, [1]), given, CONFIG)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_pairs_without_a_teacher_are_led_to_each_other():
    left, right, recent = vectors(3, 0), vectors(3, 1), vectors(4, 2)
    nothing = torch.zeros(0, 8)
    loss = path_loss(left, right, plan_of([False] * 3, [0, 1, 2]), Given(nothing, nothing, recent), CONFIG)
    expected = info_nce_both_ways(left, torch.cat([right, recent]), CONFIG.temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_mixed_batch_is_the_mean_over_its_pairs():
    left, right, recent = vectors(3, 0), vectors(2, 1), vectors(4, 2)
    given = Given(vectors(2, 3), vectors(2, 4), recent)
    # Row 1 has no teacher; the student reads the right sides of rows 1 and 2.
    loss = path_loss(left, right, plan_of([True, False, True], [1, 2]), given, CONFIG)
    goals = torch.cat([given.right, recent])
    both = 2 * cosine_distance(left[[0, 2]], given.left)
    both = both + similarity_divergence(left[[0, 2]], given.left, goals, CONFIG.temperature)
    own = given.right[[1]]
    one = 2 * cosine_distance(right[[1]], own)
    one = one + similarity_divergence(right[[1]], own, torch.cat([own, recent]), CONFIG.temperature)
    free = info_nce_both_ways(left[[1]], torch.cat([right[[0]], given.right, recent]), CONFIG.temperature)
    assert loss.item() == pytest.approx(((2 * both + one + free) / 3).item(), rel=1e-5)


def test_a_passage_is_led_to_its_sentences_and_to_the_question_about_it():
    passages, questions = vectors(3, 0), vectors(3, 1)
    given = GivenPassages(vectors(3, 2), vectors(5, 3))
    loss = passage_loss(passages, questions, given, CONFIG)
    near = lead(passages, given.passages, torch.cat([given.passages, given.recent]), CONFIG)
    apart = info_nce_both_ways(questions, passages, CONFIG.temperature)
    assert loss.item() == pytest.approx((near + apart).item(), rel=1e-5)


def test_a_question_that_is_nearer_to_its_passage_costs_less():
    passages, given = vectors(3, 0), GivenPassages(vectors(3, 2), vectors(5, 3))
    far = passage_loss(passages, vectors(3, 1), given, CONFIG)
    assert passage_loss(passages, passages, given, CONFIG) < far


def test_the_english_side_of_a_translation_goes_to_the_right_and_a_question_stays_on_the_left():
    pairs = np.array([[0, 10], [1, 11]])
    read = plan(pairs, np.array([[0, 0], [1, NO_TARGET]]), 0.0, np.random.default_rng(0))
    assert read.left.tolist() == [10, 1]
    assert read.right.tolist() == [0, 11]
    assert read.read_right.tolist() == [1]
