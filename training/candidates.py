"""What BM25 and a model find for the queries of a source among its passages, kept with its cosines.

Searching is dear and choosing is cheap: other rules are applied to what was found without another search. Texts are
read in blocks, and vectors and candidates lie in files; of a large source only BM25's index has to fit into memory.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern

import bm25s
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from service.recipe.prompts import Role
from training.checkpoint import write_json
from training.collection import Embed
from training.config import MineConfig
from training.neighbours import top_k
from training.pair_store import PairRow, PairStore, text_key

NONE = -1
# Texts embedded at a time, and queries asked at a time; what they give goes to files.
EMBEDDED_ROWS = 20_000
ASKED_ROWS = 8192
ABOUT_FILE = "candidates.json"
FILES = ("passages", "numbers", "scores", "positives")


@dataclass(frozen=True)
class Candidates:
    """What was found for the N queries of a source among its P distinct positives.

    passages: int64[P], rising, the row whose positive each is.   numbers: int32[N, K] into passages, NONE at the end of
    a row with fewer.   scores: float32[N, K], cosines by the model.   positives: float32[N], of each query
    with its own positive.
    """

    passages: NDArray[np.int64]
    numbers: NDArray[np.int32]
    scores: NDArray[np.float32]
    positives: NDArray[np.float32]


@dataclass(frozen=True)
class PairKeys:
    """queries, positives: int64[N], of the texts of each row; equal texts have equal keys."""

    queries: NDArray[np.int64]
    positives: NDArray[np.int64]


def blocks_of(rows: int, size: int) -> Iterator[NDArray[np.int64]]:
    """All row numbers, `size` at a time."""
    for start in range(0, rows, size):
        yield np.arange(start, min(start + size, rows))


def keys_of(store: PairStore) -> PairKeys:
    """The keys of every row's texts."""
    queries, positives = (np.empty(store.shape.rows, dtype=np.int64) for _ in range(2))
    for block in blocks_of(store.shape.rows, EMBEDDED_ROWS):
        rows = store.rows(block)
        queries[block] = [text_key(row.query) for row in rows]
        positives[block] = [text_key(row.positive) for row in rows]
    return PairKeys(queries, positives)


def distinct(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows where a key comes first, rising, int64[P]; and for every row which of them has its key, int64[N]."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[inverse]


def pair_numbers(queries: NDArray[np.int64], passages: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for a query with a passage, by the keys of both, which broadcast; products wrap around."""
    return queries * np.int64(0x5851F42D4C957F2D) + passages


def is_right(queries: NDArray[np.int64], passages: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether passages are known to answer queries, by the keys of both: they are a pair, or one text.

    known: sorted numbers of all pairs.
    """
    pairs = pair_numbers(queries, passages)
    places = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
    right: NDArray[np.bool_] = (known[places] == pairs) | (queries == passages)
    return right


def search(
    store: PairStore, keys: PairKeys, embed: Embed, tokenizer: Tokenizer, config: MineConfig, folder: Path
) -> Candidates:
    """Ask BM25 and the model, and keep what they find in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    passages, own = distinct(keys.positives)
    everyone = np.arange(store.shape.rows)
    queries = embedded(store, everyone, "query", store.about.query_role, embed, folder / "queries.npy")
    texts = embedded(store, passages, "positive", store.about.positive_role, embed, folder / "texts.npy")
    index = bm25_index((row.positive for row in _each(store, passages)), tokenizer) if config.bm25_top else None
    width = sum(min(top, len(passages)) for top in (config.dense_top, config.bm25_top))
    shape = (len(everyone), width)
    numbers = open_memmap(folder / "numbers.npy", "w+", dtype=np.int32, shape=shape)
    scores = open_memmap(folder / "scores.npy", "w+", dtype=np.float32, shape=shape)
    positives = open_memmap(folder / "positives.npy", "w+", dtype=np.float32, shape=shape[:1])
    for block in tqdm(list(blocks_of(len(everyone), ASKED_ROWS)), desc="searching", unit=" blocks"):
        asked, found = queries[block], []
        if config.dense_top:
            found.append(top_k(asked, texts, config.dense_top)[1])
        if index is not None:
            found.append(bm25_top(index, [row.query for row in store.rows(block)], tokenizer, config.bm25_top))
        numbers[block], scores[block] = in_turns(found, asked, texts)
        positives[block] = np.einsum("nh,nh->n", asked, texts[own[block]])
    for name in ("queries.npy", "texts.npy"):
        (folder / name).unlink()
    np.save(folder / "passages.npy", passages)
    return Candidates(passages, numbers, scores, positives)


def embedded(
    store: PairStore, numbers: NDArray[np.int64], side: str, role: Role, embed: Embed, path: Path
) -> NDArray[np.float32]:
    """The vectors of one side of some rows, mapped from a file.   side: "query" or "positive"."""
    vectors: NDArray[np.float32] | None = None
    for block in tqdm(list(blocks_of(len(numbers), EMBEDDED_ROWS)), desc=f"embedding, as {role}", unit=" blocks"):
        part = embed([getattr(row, side) for row in store.rows(numbers[block])], role)
        if vectors is None:
            vectors = open_memmap(path, "w+", dtype=np.float32, shape=(len(numbers), part.shape[1]))
        vectors[block] = part
    assert vectors is not None
    return vectors


def _each(store: PairStore, numbers: NDArray[np.int64]) -> Iterator[PairRow]:
    for number in numbers:
        yield from store.rows(number[None])


def bm25_index(texts: Iterator[str], tokenizer: Tokenizer) -> bm25s.BM25:
    """BM25 over the model's tokens: the same in every language. In memory, about 8 bytes a token."""
    index = bm25s.BM25()
    index.index([_words(text, tokenizer) for text in texts], show_progress=False)
    return index


def bm25_top(index: bm25s.BM25, queries: Sequence[str], tokenizer: Tokenizer, k: int) -> NDArray[np.int64]:
    """The k texts of the index that rank highest, int64[N, min(k, its texts)]."""
    words = [_words(query, tokenizer) for query in queries]
    numbers, _ = index.retrieve(words, k=min(k, index.scores["num_docs"]), show_progress=False)
    return np.asarray(numbers, dtype=np.int64)


def _words(text: str, tokenizer: Tokenizer) -> list[str]:
    # One object a token of the vocabulary, not one each time that it comes.
    return [intern(token) for token in tokenizer.encode(text, add_special_tokens=False).tokens]


def in_turns(
    lists: Sequence[NDArray[np.int64]], queries: NDArray[np.float32], passages: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best of each list, then the second best of each, …; each passage once, NONE behind them, and the cosines.

    lists: int64[N, K] each, best first. In turns, for by cosine BM25's would all stand behind the model's own.
    """
    ranks = np.concatenate([np.arange(part.shape[1]) for part in lists])
    mixed = np.concatenate(lists, axis=1)[:, np.argsort(ranks, kind="stable")]
    found = np.full(mixed.shape, NONE, dtype=np.int64)
    scores = np.full(mixed.shape, -np.inf, dtype=np.float32)
    for row, places in enumerate(mixed):
        kept = places[np.sort(np.unique(places, return_index=True)[1])]
        found[row, : len(kept)] = kept
        scores[row, : len(kept)] = passages[kept] @ queries[row]
    return found, scores


def keep(folder: Path, made_from: dict[str, object]) -> None:
    """Say what a finished search was made from, so that another start with the same finds it."""
    write_json(folder / ABOUT_FILE, made_from)


def load_candidates(folder: Path, made_from: dict[str, object]) -> Candidates | None:
    """Those of an earlier search, if what it was made from has these values; None where there are none."""
    try:
        before = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        if any(before.get(key) != value for key, value in made_from.items()):
            return None
        return Candidates(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES})
    except (OSError, ValueError):
        return None
