"""Bags of tokens: their weights, their targets, and that the encoder's table keeps the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.data import keep_open_sources, read_corpus, read_sources
from training.encoder import FULLEST, SLACK, weigh_by_norm
from training.token_store import TokenStore
from training.token_vectors import NO_TARGET, Bags, directions, find_targets, rarity_weights

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(keep_open_sources(read_sources(DATA)))


def store_of(*rows: list[int]) -> TokenStore:
    return TokenStore(np.concatenate([np.array(row, np.int32) for row in rows]), np.cumsum([0, *map(len, rows)]))


def test_a_frequent_token_weighs_less_than_a_rare_one_and_special_tokens_nothing():
    weights = rarity_weights(store_of([4, 4, 4, 5], [4]), [], vocab_size=7, smoothing=0.1)
    assert weights[4] < weights[5] < weights[6] == 1.0
    assert weights[:4].tolist() == [0.0] * 4


def test_the_tokens_of_a_prefix_count_as_frequent_though_no_text_holds_them():
    store = store_of([4], [5])
    weights = rarity_weights(store, [np.array([6]), np.array([6])], vocab_size=8, smoothing=0.1)
    assert weights[6] < weights[4]


def test_an_english_text_is_its_own_target_and_that_of_its_translation(corpus):
    english = corpus.languages.index("en")
    targets = find_targets(corpus)
    is_english = corpus.text_language[corpus.pairs] == english
    assert (targets[is_english] == corpus.pairs[is_english]).all()
    to_german = np.flatnonzero(corpus.pair_language == corpus.languages.index("de"))
    to_german = [row for row in to_german if is_english[row, 0]]
    assert (targets[to_german, 1] == corpus.pairs[to_german, 0]).all()


def test_a_pair_without_english_has_no_target(corpus):
    is_english = corpus.text_language[corpus.pairs] == corpus.languages.index("en")
    without = ~is_english.any(axis=1)
    assert without.any()
    assert (find_targets(corpus)[without] == NO_TARGET).all()


def test_a_bag_is_the_weighted_sum_of_its_tokens_directions():
    table = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 1.0])
    bags = Bags(store_of([4, 5, 5], [4]), weights, max_tokens=8)
    tokens = bags.tokens(np.array([0, 1]))
    got = bags.pool(table[tokens[0]], tokens)
    first = 0.5 * directions(table[4:5]) + 2 * directions(table[5:6])
    torch.testing.assert_close(got, torch.nn.functional.normalize(torch.cat([first, directions(table[4:5])])))


def test_a_layer_norm_leaves_the_table_of_the_encoder_as_it_is():
    table = torch.randn(5, 28, generator=torch.Generator().manual_seed(0))
    weighed = weigh_by_norm(table, torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]))
    # atol: float32 variance of 32 numbers.
    torch.testing.assert_close(torch.nn.functional.layer_norm(weighed, (32,)), weighed, atol=1e-4, rtol=0)


def test_the_length_of_a_rows_content_is_its_weight():
    weights = torch.tensor([0.1, 0.5, 1.0])
    content = weigh_by_norm(torch.randn(3, 28, generator=torch.Generator().manual_seed(0)), weights)[:, :-SLACK]
    torch.testing.assert_close(content.norm(dim=1), weights * FULLEST * 32**0.5)
