"""Passages put together from sentences: whole ones, of a bounded length, each asked about something that it says."""

import numpy as np
import pytest
import torch

from training.batches import PrefixIds
from training.passages import (
    PART_MAX,
    PART_MIN,
    PASSAGE_TOKENS_MIN,
    Passages,
    directions,
    part_of,
    passage_rows,
    put_together,
    tokens_of,
)
from training.token_store import TokenStore
from training.tokenizer import BOS_ID, EOS_ID

ROWS = np.arange(100, 160)


def lengths(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 60, len(ROWS))


@pytest.mark.parametrize("seed", range(5))
def test_every_sentence_is_in_one_passage_and_the_question_is_about_one_of_its_own(seed):
    made = put_together(ROWS, lengths(seed), 192, np.random.default_rng(seed))
    assert np.concatenate(made.groups).tolist() == ROWS.tolist()
    assert len(made.groups) == len(made.asked) == len(made.translated)
    assert all(asked in group for asked, group in zip(made.asked, made.groups, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_no_sentence_is_cut_off_by_the_ones_before_it(seed):
    of_row = dict(zip(ROWS.tolist(), lengths(seed).tolist(), strict=True))
    made = put_together(ROWS, lengths(seed), 192, np.random.default_rng(seed))
    filled = [sum(of_row[row] for row in group.tolist()) for group in made.groups]
    assert max(filled) <= 192
    # All but the last one ended because the next sentence did not fit any more.
    following = [of_row[int(group[0])] for group in made.groups[1:]]
    assert min(np.add(filled[:-1], following)) > PASSAGE_TOKENS_MIN


def test_a_sentence_longer_than_any_passage_is_one_alone():
    made = put_together(ROWS[:3], np.array([10, 500, 10]), 192, np.random.default_rng(0))
    assert [group.tolist() for group in made.groups] == [[100], [101], [102]]


def test_both_kinds_of_questions_come_up_and_every_place_of_a_passage_is_asked():
    made = put_together(np.arange(4000), np.full(4000, 20), 192, np.random.default_rng(0))
    assert 0.4 < made.translated.mean() < 0.6
    places = made.asked - made.starts
    assert set(places) >= {0, 1, 2, 3}


def test_a_question_in_words_of_the_passage_is_a_part_of_its_sentence_and_never_all():
    tokens, rng = np.arange(40, dtype=np.int32), np.random.default_rng(0)
    parts = [part_of(tokens, rng) for _ in range(200)]
    assert all((np.diff(part) == 1).all() for part in parts)
    assert min(map(len, parts)) >= 40 * PART_MIN
    assert max(map(len, parts)) <= 40 * PART_MAX
    assert min(part[0] for part in parts) == 0
    assert max(part[-1] for part in parts) == 39


def test_a_sentence_of_one_token_is_asked_for_with_it_and_one_of_none_with_none():
    assert part_of(np.array([7], dtype=np.int32), np.random.default_rng(0)).tolist() == [7]
    assert part_of(np.zeros(0, dtype=np.int32), np.random.default_rng(0)).tolist() == []


def test_passages_may_be_shorter_than_a_sentence_is_long():
    made = put_together(ROWS[:4], np.array([5, 5, 5, 5]), 10, np.random.default_rng(0))
    assert [len(group) for group in made.groups] == [2, 2]


def test_the_tokens_of_a_passage_are_those_of_its_sentences_in_order():
    store = TokenStore(np.arange(10, dtype=np.int32), np.array([0, 3, 4, 10]))
    assert tokens_of(store, np.array([2, 0]), 100).tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert tokens_of(store, np.array([2, 0]), 7).tolist() == [4, 5, 6, 7, 8, 9, 0]


# Rows 0, 1 and 3 of a batch, of which 2 has no teacher: two passages, asked by a translation and by a part.
MADE = Passages(np.array([0, 1, 3]), np.array([0, 2]), np.array([1, 3]), np.array([True, False]))


def test_the_student_reads_the_passages_and_behind_them_a_question_to_each():
    store = TokenStore(np.arange(100, 180, dtype=np.int32), np.arange(9) * 10)
    prefixes = PrefixIds(np.array([7, 8], dtype=np.int32), np.array([9], dtype=np.int32))
    sentences, translations = np.arange(4), np.arange(4, 8)
    rows = passage_rows(MADE, (sentences, translations), store, prefixes, 18, np.random.default_rng(0))
    # Fifteen tokens of two sentences fit beside the prefix and the special tokens.
    assert rows[0].tolist() == [BOS_ID, 9, *range(100, 115), EOS_ID]
    assert rows[1].tolist() == [BOS_ID, 9, *range(130, 140), EOS_ID]
    assert rows[2].tolist() == [BOS_ID, 7, 8, *range(150, 160), EOS_ID]
    asked = rows[3].tolist()[3:-1]
    assert asked == list(range(asked[0], asked[-1] + 1))
    assert 130 <= asked[0] <= asked[-1] < 140
    assert len(asked) < 10
    assert len(rows) == 4


def test_a_passage_lies_in_the_direction_of_its_sentences():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]])
    torch.testing.assert_close(directions(vectors, MADE), torch.tensor([[0.5**0.5, 0.5**0.5], [0.6, -0.8]]))
