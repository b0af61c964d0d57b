"""The tokenizer: what it normalises, where it splits, and that token rows equal the shared recipe's tokens."""

from pathlib import Path

import numpy as np
import pytest

from service.recipe.prompts import E5_PROMPTS, format_text
from service.recipe.tokens import tokenize
from training.batches import Texts, read_prefixes, token_rows
from training.bootstrap_config import TokenizerConfig
from training.data import keep_open_sources, read_corpus, read_sources
from training.token_store import take_bags, tokenize_all
from training.tokenizer import (
    SPECIAL_TOKENS,
    WORD_END,
    blank_rare_characters,
    share_by_temperature,
    train_tokenizer,
)

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(keep_open_sources(read_sources(DATA)))


@pytest.fixture(scope="module")
def tokenizer(corpus):
    config = TokenizerConfig(vocab_size=700, sample_strings=2000, min_character_count=1, min_word_count=1)
    return train_tokenizer(corpus.texts, corpus.text_language, config, seed=1)


def test_special_tokens_have_the_numbers_of_xlm_r(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]


def test_a_text_is_framed_by_bos_and_eos(tokenizer):
    ids = tokenizer.encode("the cat").ids
    assert (ids[0], ids[-1]) == (0, 2)


def test_case_width_and_white_space_make_no_difference(tokenizer):
    assert tokenizer.encode("  THE\u3000ｃａｔ\n sleeps ").ids == tokenizer.encode("the cat sleeps").ids


def test_a_word_behind_an_apostrophe_has_the_tokens_of_the_free_word(tokenizer):
    bare = tokenizer.encode("eau", add_special_tokens=False).ids
    assert tokenizer.encode("l'eau", add_special_tokens=False).ids[-len(bare) :] == bare


def test_a_frequent_word_that_is_part_of_no_other_word_is_one_token(tokenizer):
    assert tokenizer.encode("bread", add_special_tokens=False).tokens == ["▁bread"]


def test_punctuation_takes_one_token(tokenizer):
    assert tokenizer.encode(".", add_special_tokens=False).tokens == ["▁."]


def test_the_word_end_of_training_meets_no_text(corpus):
    assert not any(WORD_END in text for text in corpus.texts)


def test_rare_characters_are_blanked_and_frequent_ones_stay():
    assert blank_rare_characters(["aab", "a"], 2) == ["aa ", "a"]


def test_a_lower_exponent_gives_small_languages_more_and_none_more_than_it_has():
    counts = np.array([1000, 10, 0])
    flat, steep = share_by_temperature(counts, 0.0, 100), share_by_temperature(counts, 1.0, 100)
    assert flat.tolist() == [50, 10, 0]
    assert steep.tolist() == [100, 1, 0]


@pytest.mark.parametrize("role", ["query", "passage"])
def test_token_rows_equal_the_tokens_that_serving_makes_of_the_same_texts(corpus, tokenizer, role):
    numbers = np.arange(0, len(corpus.texts), 7)
    store = tokenize_all(tokenizer, corpus.texts, 64)
    rows = token_rows(store, read_prefixes(tokenizer), Texts(numbers, role), 64)
    served = tokenize(tokenizer, [format_text(corpus.texts[number], E5_PROMPTS, role) for number in numbers], 64)
    assert [row.tolist() for row in rows] == [tokens.ids.tolist() for tokens in served]


def test_a_long_text_is_cut_where_serving_cuts_it(corpus, tokenizer):
    store = tokenize_all(tokenizer, corpus.texts, 64)
    longest = int(np.argmax(store.lengths()))
    rows = token_rows(store, read_prefixes(tokenizer), Texts(np.array([longest]), "passage"), 12)
    served = tokenize(tokenizer, [format_text(corpus.texts[longest], E5_PROMPTS, "passage")], 12)
    assert rows[0].tolist() == served[0].ids.tolist()


def test_bags_hold_the_tokens_of_their_texts_in_order(corpus, tokenizer):
    store = tokenize_all(tokenizer, corpus.texts, 64)
    numbers = np.array([5, 0, 9])
    ids, starts = take_bags(store, numbers, 4)
    bags = np.split(ids, starts[1:])
    assert [bag.tolist() for bag in bags] == [store.row(number, 4).tolist() for number in numbers]
