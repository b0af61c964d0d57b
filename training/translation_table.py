"""Which English tokens a token stands for: IBM's first translation model over the pairs that have an English side.

Each English token of a pair is explained by the tokens of the other side, which compete for it, and by none of them;
what a token explains over all pairs is its translation (Brown et al. 1993, model 1, a few rounds of EM). No word order
is needed, a sub-word is as good as a word, and a million pairs take minutes on one core.
"""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from training.data import Corpus
from training.targets import is_translation
from training.token_store import TokenStore, take_bags

logger = logging.getLogger(__name__)
# Longer texts are loose pairs more often, and cost the square of their length.
TOKENS_PER_SIDE = 48
PAIRS_PER_CHUNK = 20_000
# English tokens that a token may stand for; chosen by how much more often the two meet than by chance.
CANDIDATES = 24
ROUNDS = 5
# Shares below this are noise of long sentences.
SMALLEST_SHARE = 0.05
FILTER_BITS = 27


@dataclass(frozen=True)
class Links:
    """Pairs of tokens that met and may be translations, by rising key.   keys: int64[N], other * V + english."""

    keys: NDArray[np.int64]
    vocab_size: int

    @property
    def other(self) -> NDArray[np.int64]:
        """int64[N], the token on the side that is not English."""
        return self.keys // self.vocab_size

    @property
    def english(self) -> NDArray[np.int64]:
        """int64[N], the token on the English side."""
        return self.keys % self.vocab_size


def english_pairs(corpus: Corpus) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The texts of the translation pairs with an English side: int64[N] of the other language, int64[N] English."""
    english = corpus.languages.index("en")
    is_english = corpus.text_language[corpus.pairs] == english
    rows = np.flatnonzero(is_translation(corpus) & (is_english[:, 0] != is_english[:, 1]))
    pairs = corpus.pairs[rows].astype(np.int64)
    first = is_english[rows, 0]
    return np.where(first, pairs[:, 1], pairs[:, 0]), np.where(first, pairs[:, 0], pairs[:, 1])


def translation_shares(
    store: TokenStore, others: NDArray[np.int64], english: NDArray[np.int64], vocab_size: int
) -> csr_matrix:
    """Learn what each token stands for.

    others, english: int64[N], text numbers, row by row translations.
    Returns float32[V, V]: each row's shares over English tokens, which add up to 1; empty where nothing is known.
    """
    links = find_links(store, others, english, vocab_size)
    logger.info("translation table: %d pairs of texts, %d pairs of tokens", len(others), len(links.keys))
    meetings, groups, group_token = find_meetings(store, others, english, links)
    frequency = np.bincount(group_token, minlength=vocab_size) / max(len(group_token), 1)
    unexplained = frequency[group_token]
    shares = np.full(len(links.keys), 1 / CANDIDATES)
    for _ in range(ROUNDS):
        likely = shares[meetings]
        total = np.bincount(groups, weights=likely, minlength=len(group_token)) + unexplained
        found = np.bincount(meetings, weights=likely / total[groups], minlength=len(links.keys))
        shares = _normalised(found.astype(np.float64), links.other, vocab_size)
    shares[shares < SMALLEST_SHARE] = 0
    shares = _normalised(shares, links.other, vocab_size)
    kept = shares > 0
    return csr_matrix(
        (shares[kept].astype(np.float32), (links.other[kept], links.english[kept])), shape=(vocab_size, vocab_size)
    )


def _normalised(values: NDArray[np.float64], rows: NDArray[np.int64], vocab_size: int) -> NDArray[np.float64]:
    totals = np.bincount(rows, weights=values, minlength=vocab_size)
    return values / np.maximum(totals[rows], 1e-12)


def _occurrences(store: TokenStore, numbers: NDArray[np.int64], vocab_size: int) -> csr_matrix:
    """Whether each token is in each text, float32[N, V]."""
    ids, starts = take_bags(store, numbers, TOKENS_PER_SIDE)
    table = csr_matrix(
        (np.ones(len(ids), dtype=np.float32), ids.astype(np.int32), np.append(starts, len(ids))),
        shape=(len(numbers), vocab_size),
    )
    table.sum_duplicates()
    table.data[:] = 1
    return table


def find_links(store: TokenStore, others: NDArray[np.int64], english: NDArray[np.int64], vocab_size: int) -> Links:
    """The English tokens that each token may stand for: those that it meets most, relative to how frequent both are."""
    left, right = _occurrences(store, others, vocab_size), _occurrences(store, english, vocab_size)
    left_count, right_count = np.asarray(left.sum(axis=0))[0], np.asarray(right.sum(axis=0))[0]
    together = (left.T @ right).tocoo()
    # One meeting is chance, unless the token was only met a few times.
    kept = (together.data > 1) | (left_count[together.row] < 4)
    rows, columns, counts = together.row[kept], together.col[kept], together.data[kept]
    nearness = counts / np.sqrt(left_count[rows] * right_count[columns])
    order = np.lexsort((-nearness, rows))
    rows, columns = rows[order], columns[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    chosen = place < CANDIDATES
    keys = rows[chosen].astype(np.int64) * vocab_size + columns[chosen]
    return Links(np.sort(keys), vocab_size)


def _hash(keys: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A place among 2 ** FILTER_BITS for each key: Knuth's multiplicative hashing, modulo 2 ** 64."""
    return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - FILTER_BITS)


def find_meetings(
    store: TokenStore, others: NDArray[np.int64], english: NDArray[np.int64], links: Links
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Every meeting of two linked tokens in a pair of texts.

    Returns int32[M], which link; int32[M], for which English token of which pair; int64[G], what token that is.
    """
    link_of, group_of, tokens = [], [], []
    first_group = 0
    # Most meetings are of tokens that are not linked; a look into this table is quicker than a search.
    may_link = np.zeros(1 << FILTER_BITS, dtype=np.bool_)
    may_link[_hash(links.keys)] = True
    for begin in range(0, len(others), PAIRS_PER_CHUNK):
        other_ids, other_starts = take_bags(store, others[begin : begin + PAIRS_PER_CHUNK], TOKENS_PER_SIDE)
        ids, starts = take_bags(store, english[begin : begin + PAIRS_PER_CHUNK], TOKENS_PER_SIDE)
        other_lengths = np.diff(np.append(other_starts, len(other_ids)))
        lengths = np.diff(np.append(starts, len(ids)))
        # For every English token of a pair, all tokens of its other side.
        wide = np.repeat(other_lengths, lengths)
        groups = np.repeat(np.arange(len(ids)), wide)
        within = np.arange(wide.sum()) - np.repeat(np.cumsum(wide) - wide, wide)
        keys = other_ids[np.repeat(np.repeat(other_starts, lengths), wide) + within] * links.vocab_size + ids[groups]
        likely = np.flatnonzero(may_link[_hash(keys)])
        keys, groups = keys[likely], groups[likely]
        places = np.minimum(np.searchsorted(links.keys, keys), len(links.keys) - 1)
        found = links.keys[places] == keys
        link_of.append(places[found].astype(np.int32))
        group_of.append((groups[found] + first_group).astype(np.int32))
        tokens.append(ids)
        first_group += len(ids)
    return np.concatenate(link_of), np.concatenate(group_of), np.concatenate(tokens)
