"""Token vectors learnt with every text as a bag: the weights, and who moves to whom."""

import numpy as np
import torch

from training.bootstrap_config import TokenVectorsConfig
from training.data import NO_TEXT, Corpus
from training.mixture import build_mixture
from training.token_store import TokenStore
from training.token_vectors import begin_static_path, learn_token_vectors, rarity_weights, token_shares

WORDS = 12
FIRST_ENGLISH, FIRST_FOREIGN, VOCAB_SIZE = 4, 4 + WORDS, 4 + 2 * WORDS


def store_of(*rows: list[int]) -> TokenStore:
    return TokenStore(np.concatenate([np.array(row, np.int32) for row in rows]), np.cumsum([0, *map(len, rows)]))


def test_a_frequent_token_weighs_less_than_a_rare_one_and_special_tokens_nothing():
    weights = rarity_weights(token_shares(store_of([4, 4, 4, 5], [4]), [], vocab_size=7), smoothing=0.1)
    assert weights[4, 0] < weights[5, 0] < weights[6, 0] == 1.0
    assert weights[:4].tolist() == [[0.0]] * 4


def test_the_tokens_of_a_prefix_count_as_frequent_though_no_text_holds_them():
    store = store_of([4], [5])
    shares = token_shares(store, [np.array([6]), np.array([6])], vocab_size=8)
    assert shares[6] > shares[4] > shares[7] == 0


def dictionary() -> tuple[TokenStore, Corpus]:
    """Sentences of three English words, and the same in a language that has one word for each."""
    drawn = np.random.default_rng(0)
    sentences = [drawn.choice(WORDS, 3, replace=False) for _ in range(300)]
    english = [(FIRST_ENGLISH + words).tolist() for words in sentences]
    foreign = [(FIRST_FOREIGN + words).tolist() for words in sentences]
    count = len(sentences)
    pairs = np.column_stack([np.arange(count), count + np.arange(count)]).astype(np.int32)
    corpus = Corpus(
        texts=[f"text {number}" for number in range(2 * count)],
        text_language=np.repeat(np.array([0, 1], np.int16), count),
        languages=["en", "xx"],
        sources=["translation_words"],
        pairs=pairs,
        negatives=np.full(count, NO_TEXT, np.int32),
        pair_source=np.zeros(count, np.int16),
        pair_language=np.ones(count, np.int16),
    )
    return store_of(*english, *foreign), corpus


def test_foreign_tokens_move_to_the_english_ones_which_stay_where_they_are():
    store, corpus = dictionary()
    start = torch.randn(VOCAB_SIZE, 16, generator=torch.Generator().manual_seed(1))
    table = start.clone()
    how_english = np.where(np.arange(VOCAB_SIZE) < FIRST_FOREIGN, 1.0, 0.0)
    config = TokenVectorsConfig(
        steps=150,
        tokens_per_batch=200,
        batch_pairs_max=32,
        learning_rate=0.05,
        matrix_learning_rate=1e-3,
        gain_learning_rate=1e-3,
        mobility_min=0.0,
    )
    static = begin_static_path(table, token_shares(store, [], VOCAB_SIZE), config.rarity_smoothing, 0.5)
    mixture = build_mixture(corpus, 1.0, 1.0, {})
    assert learn_token_vectors(table, static, how_english, store, corpus, mixture, config, 1, lambda: False)
    english, foreign = slice(FIRST_ENGLISH, FIRST_FOREIGN), slice(FIRST_FOREIGN, VOCAB_SIZE)
    torch.testing.assert_close(table[english], start[english])
    nearest = (torch.nn.functional.normalize(table[foreign]) @ torch.nn.functional.normalize(table[english]).T).argmax(
        1
    )
    # By chance it would be one of twelve.
    assert (nearest == torch.arange(WORDS)).float().mean() > 0.8


def test_a_stop_is_heard_and_says_that_nothing_is_finished():
    store, corpus = dictionary()
    table = torch.randn(VOCAB_SIZE, 16)
    config = TokenVectorsConfig(
        steps=5,
        tokens_per_batch=100,
        batch_pairs_max=8,
        learning_rate=0.01,
        matrix_learning_rate=1e-3,
        gain_learning_rate=1e-3,
    )
    polls = iter([False, True])
    static = begin_static_path(table, token_shares(store, [], VOCAB_SIZE), config.rarity_smoothing, 0.5)
    mixture = build_mixture(corpus, 1.0, 1.0, {})
    finished = learn_token_vectors(
        table, static, np.zeros(VOCAB_SIZE), store, corpus, mixture, config, 1, lambda: next(polls)
    )
    assert not finished
