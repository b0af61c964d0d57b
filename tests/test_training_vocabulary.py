"""The final vocabulary: whole words go in, rarely used sub-words go out, characters stay."""

from pathlib import Path

import numpy as np
import pytest

from training.bootstrap_config import TokenizerConfig, VocabularyConfig
from training.data import keep_open_sources, read_corpus, read_sources
from training.token_store import tokenize_all
from training.tokenizer import SPECIAL_TOKENS, is_character, train_tokenizer
from training.vocabulary import add_words, choose_vocabulary, keep_most_used, starting_words

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(keep_open_sources(read_sources(DATA)))


@pytest.fixture(scope="module")
def learnt(corpus):
    config = TokenizerConfig(vocab_size=600, sample_strings=2000, min_character_count=1, min_word_count=1000)
    return train_tokenizer(corpus.texts, corpus.text_language, config, seed=1)


@pytest.fixture(scope="module")
def chosen(corpus, learnt):
    pieces = {"[PAD]": 0, "cat": 1, "garden": 2, "##s": 3, "zygote": 4, ".": 5}
    size = learnt.get_vocab_size()
    config = VocabularyConfig(vocab_size=size, language_texts_min=1, starting_words=10, saving_words=20)
    store = tokenize_all(learnt, corpus.texts, 64)
    return choose_vocabulary(learnt, store, corpus, pieces, config, seed=1)


def test_the_vocabulary_has_the_size_that_was_asked_for_and_the_special_tokens_first(learnt, chosen):
    assert chosen.get_vocab_size() == learnt.get_vocab_size()
    assert [chosen.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]


def test_a_word_of_the_starting_model_is_one_token_though_no_text_holds_it(chosen):
    assert chosen.encode("zygote", add_special_tokens=False).tokens == ["▁zygote"]


def test_words_that_were_written_in_pieces_become_tokens(corpus, learnt, chosen):
    texts = [text for text in corpus.texts if text.isascii()]
    before, after = (
        sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts)) for tokenizer in (learnt, chosen)
    )
    assert after < before


def test_no_character_is_dropped(corpus, learnt, chosen):
    characters = {token for token in learnt.get_vocab() if is_character(token)}
    assert characters <= set(chosen.get_vocab())
    for text in corpus.texts:
        assert chosen.token_to_id("<unk>") not in chosen.encode(text).ids


def test_the_tokens_used_most_are_kept(learnt):
    ids = learnt.get_vocab()
    longer = {token for token in ids if not is_character(token) and token not in SPECIAL_TOKENS}
    # The later a token stands, the more it is used.
    usage = np.arange(len(ids), dtype=float)
    kept = keep_most_used(learnt, usage, pinned=[], size=len(ids) - len(longer) // 2)
    dropped = set(ids) - set(kept.get_vocab())
    assert len(dropped) == len(longer) // 2
    assert dropped <= longer
    assert max(ids[token] for token in dropped) < min(ids[token] for token in longer - dropped)


def test_an_added_word_changes_no_other_words_tokens(learnt):
    words = ["zygote"]
    added = add_words(learnt, words)
    assert added.encode("zygote", add_special_tokens=False).tokens == ["▁zygote"]
    sentence = "The cat sleeps in the garden."
    assert added.encode(sentence).tokens == learnt.encode(sentence).tokens


def test_word_pieces_that_are_no_whole_words_are_no_starting_words():
    assert starting_words({"##s": 0, "a": 1, "the": 2, "é": 3, "cat": 4, ".": 5}, 5) == ["the", "cat"]
