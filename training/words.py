"""BM25 as a System: texts are near each other by the words they share.

The library bm25s weighs the words of the documents; here its weights become sparse rows, so that all queries are scored
by one product, and so that pairs and features come from the same weights. Words are the subwords of a tokenizer, the
same in every language, or what bm25s takes for words where languages write spaces between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

import bm25s
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix
from sklearn.preprocessing import normalize

from service.recipe.spec import file_sha256
from service.recipe.tokens import load_tokenizer
from training.errors import UnknownSystem
from training.system import Identity, Nearness, Side

WORDS = "bm25"
Variant = Literal["lucene", "robertson", "atire"]
WordIds: TypeAlias = list[list[int]]
# Queries multiplied at a time: the sparse product of a block with 10,000 documents stays below 100 MB.
BLOCK_ROWS = 512


@dataclass(frozen=True)
class WordOptions:
    """tokenizer: a tokenizer.json; None: bm25s's own words, lower case, two characters or more, no stop words.

    k1: how soon a repeated word stops counting.   b: how much long documents are held back, 0 to 1.   variant: as bm25s
    names them; "lucene" is its default. Lucene's own defaults, with which pyserini makes the BM25 rows of MIRACL, are
    k1 = 0.9, b = 0.4.
    """

    tokenizer: Path | None = None
    k1: float = 1.5
    b: float = 0.75
    variant: Variant = "lucene"

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise UnknownSystem(f"BM25 with k1 = {self.k1:g}, b = {self.b:g}: k1 must be 0 or more, b from 0 to 1")


class WordSystem:
    """BM25 with these options."""

    def __init__(self, options: WordOptions) -> None:
        self._options = options
        self._tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
        details = {"k1": f"{options.k1:g}", "b": f"{options.b:g}", "variant": options.variant}
        details["words"] = "bm25s" if options.tokenizer is None else "tokenizer"
        self.identity = Identity(
            name=WORDS if options.tokenizer is None else f"{WORDS}:{'/'.join(options.tokenizer.resolve().parts[-3:])}",
            engine=f"bm25s {version('bm25s')}",
            dtype="fp32",
            prompts={},
            max_tokens=None,
            files={} if options.tokenizer is None else {options.tokenizer.name: file_sha256(options.tokenizer)},
            details=details,
        )

    def read(self, sides: Sequence[Side]) -> "WordReading":
        """Find the words of all texts; roles and instructions make no difference."""
        rows: dict[str, int] = {}
        for side in sides:
            for text in side.texts:
                rows.setdefault(text, len(rows))
        words, size = self._words(list(rows))
        return WordReading(rows, words, size, self._options)

    def _words(self, texts: list[str]) -> tuple[WordIds, int]:
        if self._tokenizer is not None:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings], self._tokenizer.get_vocab_size()
        found = bm25s.tokenize(texts, stopwords=[], show_progress=False)
        return found.ids, len(found.vocab)


class WordReading:
    """The words of one set's texts, [texts, vocabulary]."""

    def __init__(self, rows: dict[str, int], words: WordIds, vocabulary: int, options: WordOptions) -> None:
        self._rows = rows
        self._words = words
        self._vocabulary = vocabulary
        self._options = options
        self._counts = word_counts(words, vocabulary)
        self._weighed: dict[tuple[int, ...], csr_matrix] = {}

    def nearness(self, queries: Side, documents: Side) -> Nearness:
        """BM25 of each query with each document; how rare a word is and how long a text, by the documents alone."""
        wanted = self._counts[self._numbers(queries)]
        weights = self._weights(tuple(self._numbers(documents))).T.tocsc()
        found = np.empty((wanted.shape[0], weights.shape[1]), dtype=np.float32)
        for start in range(0, wanted.shape[0], BLOCK_ROWS):
            found[start : start + BLOCK_ROWS] = (wanted[start : start + BLOCK_ROWS] @ weights).toarray()
        return found

    def pair_nearness(self, firsts: Side, seconds: Side) -> NDArray[np.float64]:
        """The mean of both directions, each divided by what the text scores with itself: equal texts are at 1.

        How rare a word is, by all texts of the set.
        """
        weights = self._weights(tuple(range(len(self._words))))
        left, right = self._numbers(firsts), self._numbers(seconds)
        own = _row_products(self._counts, weights)
        scores = [
            _row_products(self._counts[query], weights[document]) / np.where(own[query] > 0, own[query], 1)
            for query, document in ((left, right), (right, left))
        ]
        # Without this, a text in which no word is known would not be like itself.
        return np.where(np.equal(left, right), 1.0, (scores[0] + scores[1]) / 2)

    def features(self, side: Side) -> csr_matrix:
        """Rows of BM25 weights at length one, by all texts of the set, so that the columns mean the same everywhere."""
        weights = self._weights(tuple(range(len(self._words))))
        return normalize(weights[self._numbers(side)])

    def _numbers(self, side: Side) -> list[int]:
        return [self._rows[text] for text in side.texts]

    def _weights(self, documents: tuple[int, ...]) -> csr_matrix:
        # A pool is searched again and again, by the queries of every language.
        if documents not in self._weighed:
            words = [self._words[number] for number in documents]
            self._weighed[documents] = word_weights(words, self._vocabulary, self._options)
        return self._weighed[documents]


def word_counts(words: WordIds, vocabulary: int) -> csr_matrix:
    """How often each word is in each text, float32[texts, vocabulary]."""
    columns = np.fromiter((word for row in words for word in row), dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in words], dtype=np.int64)])
    counts = csr_matrix((np.ones(len(columns), dtype=np.float32), columns, starts), shape=(len(words), vocabulary))
    counts.sum_duplicates()
    return counts


def word_weights(words: WordIds, vocabulary: int, options: WordOptions) -> csr_matrix:
    """What each word of each document adds to the score of a query that has it, float32[documents, vocabulary]."""
    if not any(words):
        return csr_matrix((len(words), vocabulary), dtype=np.float32)
    index = bm25s.BM25(k1=options.k1, b=options.b, method=options.variant)
    # Ids of the whole set's vocabulary, so that all matrices have the same columns.
    known = {str(word): word for word in range(vocabulary)}
    index.index((words, known), create_empty_token=False, show_progress=False)
    columns = (index.scores["data"], index.scores["indices"], index.scores["indptr"])
    return csc_matrix(columns, shape=(len(words), vocabulary)).tocsr()


def _row_products(left: csr_matrix, right: csr_matrix) -> NDArray[np.float64]:
    """The product of row i with row i, float64[N]."""
    return np.asarray(left.multiply(right).sum(axis=1, dtype=np.float64)).ravel()
