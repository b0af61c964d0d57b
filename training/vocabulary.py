"""Where the entries of a small vocabulary go: whole words in place of sub-words that hardly any text needs.

A Unigram model balanced over hundreds of languages cuts frequent words of the large ones into pieces. Each language
counts by its number of texts to a power; then the starting model's own words become tokens, so that its knowledge of
them can be used, then the words that save most pieces, and what room is left goes to the sub-words used most.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.bootstrap_config import VocabularyConfig
from training.data import Corpus
from training.token_store import TokenStore
from training.tokenizer import SPECIAL_TOKENS, is_character, order_vocabulary

# By how much a word that is made a token is likelier than the pieces it was written with.
WHOLE_WORD_GAIN = 0.1
# Words are counted in at most so many texts of a language, and in the beginning of each.
TEXTS_PER_LANGUAGE, COUNTED_CHARACTERS = 8000, 300
# Rarer words of a language, and longer ones, are not worth an entry.
WORD_COUNT_MIN, WORD_CHARACTERS_MAX = 3, 20
CANDIDATES = 40_000
_WORD = re.compile(r"[^\s!-/:-@\[-`{-~।॥،؛؟。、，！？：；（）「」『』“”‘’«»„…–—·٪‐-―]+")
# Thai and Lao, Burmese, Khmer, kana, Han: what stands between two spaces there is no word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True)
class Weights:
    """How much a text of each language counts: float64[L], 0 for languages with few texts."""

    of_language: NDArray[np.float64]
    texts: NDArray[np.int64]


def weigh_languages(corpus: Corpus, config: VocabularyConfig) -> Weights:
    """Count each language by its number of texts to a power."""
    texts = np.bincount(corpus.text_language, minlength=len(corpus.languages))
    weights = np.maximum(texts, 1).astype(np.float64) ** (config.language_exponent - 1)
    return Weights(np.where(texts >= config.language_texts_min, weights, 0.0), texts)


def token_usage(store: TokenStore, corpus: Corpus, weights: Weights, vocab_size: int) -> NDArray[np.float64]:
    """How often each token is used, the languages weighed. float64[V]."""
    per_token = np.repeat(weights.of_language[corpus.text_language], store.lengths())
    return np.bincount(store.ids, weights=per_token, minlength=vocab_size).astype(np.float64)


def starting_words(pieces: dict[str, int], count: int) -> list[str]:
    """The most frequent whole words of Latin letters and digits in a WordPiece vocabulary, which is in that order."""
    ordered = sorted(pieces, key=lambda piece: pieces[piece])
    return [piece for piece in ordered if len(piece) > 1 and piece.isascii() and piece.isalnum()][:count]


def count_words(corpus: Corpus, weights: Weights, skipped: str, seed: int) -> Counter[str]:
    """Count the words of all languages but one, the languages weighed; a sample of the large ones."""
    rng = np.random.default_rng(seed)
    counted: Counter[str] = Counter()
    for language, texts in enumerate(weights.texts):
        if weights.of_language[language] == 0 or corpus.languages[language] == skipped:
            continue
        rows = np.flatnonzero(corpus.text_language == language)
        if len(rows) > TEXTS_PER_LANGUAGE:
            rows = rng.choice(rows, TEXTS_PER_LANGUAGE, replace=False)
        found = Counter(
            word
            for row in rows
            for word in _WORD.findall(unicodedata.normalize("NFKC", corpus.texts[row][:COUNTED_CHARACTERS]).lower())
        )
        share = weights.of_language[language] * texts / len(rows)
        for word, count in found.items():
            if count >= WORD_COUNT_MIN and len(word) <= WORD_CHARACTERS_MAX:
                counted[word] += count * share
    return counted


def words_that_save(counted: Counter[str], tokenizer: Tokenizer, count: int, without: Sequence[str]) -> list[str]:
    """The words that would save most pieces if each were a token."""
    known = tokenizer.get_vocab()
    words = [word for word in counted if f"▁{word}" not in known and word not in known]
    pieces = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(words, add_special_tokens=False)]
    saved = {
        word: counted[word] * (length - 1)
        for word, length in zip(words, pieces, strict=True)
        if length > 1 and not _UNSPACED.search(word)
    }
    best = sorted(saved, key=lambda word: (-saved[word], word))[:CANDIDATES]
    left_out = set(without)
    return [word for word in best if word not in left_out and is_one_word(tokenizer, word)][:count]


def is_one_word(tokenizer: Tokenizer, word: str) -> bool:
    """Whether the tokenizer's own rules leave a word whole."""
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(word))) == 1


def add_words(tokenizer: Tokenizer, words: Sequence[str]) -> Tokenizer:
    """Make each of some words a token.

    A new word's score is just above that of the pieces it was written with, so that it is written whole from now on and
    nothing else changes much.
    """
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    scores = dict(vocab)
    # Of a character that the tokenizer does not know.
    lowest = min(scores.values())
    missing = [word for word in words if f"▁{word}" not in scores]
    encodings = tokenizer.encode_batch(missing, add_special_tokens=False)
    for word, encoding in zip(missing, encodings, strict=True):
        score = sum(scores.get(piece, lowest) for piece in encoding.tokens)
        vocab.append([f"▁{word}", round(score + WHOLE_WORD_GAIN, 4)])
    return Tokenizer.from_str(json.dumps(content))


def keep_most_used(tokenizer: Tokenizer, usage: NDArray[np.float64], pinned: Sequence[str], size: int) -> Tokenizer:
    """Keep special tokens, characters, the pinned words, and of the rest the tokens used most, `size` in all."""
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    wanted = {f"▁{word}" for word in pinned}
    kept = {
        number
        for number, (token, _) in enumerate(vocab)
        if number < len(SPECIAL_TOKENS) or is_character(token) or token in wanted
    }
    rest = sorted((number for number in range(len(vocab)) if number not in kept), key=lambda number: -usage[number])
    kept |= set(rest[: max(0, size - len(kept))])
    content["model"]["vocab"] = [vocab[number] for number in sorted(kept)]
    return Tokenizer.from_str(json.dumps(content))


def choose_vocabulary(
    tokenizer: Tokenizer,
    store: TokenStore,
    corpus: Corpus,
    starting_pieces: dict[str, int],
    config: VocabularyConfig,
    seed: int,
) -> Tokenizer:
    """Give a learnt tokenizer its final vocabulary.

    store: the corpus in the tokens of `tokenizer`.   starting_pieces: the starting model's vocabulary.
    """
    weights = weigh_languages(corpus, config)
    own = starting_words(starting_pieces, config.starting_words)
    saving = words_that_save(count_words(corpus, weights, "en", seed), tokenizer, config.saving_words, own)
    known = tokenizer.get_vocab()
    added = sum(f"▁{word}" not in known for word in [*own, *saving])
    usage = token_usage(store, corpus, weights, tokenizer.get_vocab_size())
    kept = keep_most_used(tokenizer, usage, own, config.vocab_size - added)
    return order_vocabulary(add_words(kept, [*own, *saving]))
