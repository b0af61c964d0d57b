"""The tokens of all texts in two flat arrays: tokenised once, read by text number."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

CHUNK_TEXTS = 20_000


@dataclass(frozen=True)
class TokenStore:
    """Token ids of many texts, without prefix and special tokens.

    ids: int32[sum of lengths].   starts: int64[T + 1]; text i is ids[starts[i]:starts[i + 1]].
    """

    ids: np.ndarray
    starts: np.ndarray

    def row(self, number: int, max_tokens: int) -> np.ndarray:
        """Return the first max_tokens tokens of one text, int32."""
        start = self.starts[number]
        return self.ids[start : min(self.starts[number + 1], start + max_tokens)]

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of every text, int64[T]."""
        return np.diff(self.starts)


def tokenize_all(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> TokenStore:
    """Tokenise every text, without prefix and special tokens, cut at max_tokens."""
    pieces: list[np.ndarray] = []
    lengths: list[int] = [0]
    for start in range(0, len(texts), CHUNK_TEXTS):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + CHUNK_TEXTS], add_special_tokens=False):
            row = np.array(encoding.ids[:max_tokens], dtype=np.int32)
            pieces.append(row)
            lengths.append(len(row))
    ids = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)
    return TokenStore(ids=ids, starts=np.cumsum(lengths, dtype=np.int64))


def take_bags(store: TokenStore, numbers: np.ndarray, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Gather the tokens of some texts as bags.

    numbers: int[B].  Returns token ids int64[sum of lengths] and bag starts int64[B], as torch's embedding_bag wants.
    """
    lengths = np.minimum(store.starts[numbers + 1] - store.starts[numbers], max_tokens)
    bag_starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    positions = np.arange(lengths.sum()) - np.repeat(bag_starts, lengths) + np.repeat(store.starts[numbers], lengths)
    return store.ids[positions].astype(np.int64), bag_starts.astype(np.int64)


def save_tokens(store: TokenStore, path: Path) -> None:
    """Write a store whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, ids=store.ids, starts=store.starts)
    unfinished.replace(path)


def load_tokens(path: Path) -> TokenStore:
    """Read what save_tokens wrote."""
    with np.load(path) as arrays:
        return TokenStore(ids=arrays["ids"], starts=arrays["starts"])
