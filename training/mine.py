"""Hard negatives: passages that BM25 or the model itself finds for a query, and that are not right.

Searching is dear and choosing is cheap, so candidates are kept with their scores, and other rules are applied to them
without another search.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from training.pair_store import About, PairRow, PairStore, text_key, write_store

logger = logging.getLogger(__name__)

NONE = -1
# Texts embedded at a time; their vectors go to a file.
EMBEDDED_ROWS = 20_000
ABOUT_FILE = "candidates.json"
FILES = ("passages", "numbers", "scores", "positives")


@dataclass(frozen=True)
class Candidates:
    """What was found for the N queries of a source among its P distinct positives.

    passages: int64[P], the row whose positive each is.   numbers: int64[N, K] into passages, NONE at the end of a row
    with fewer.   scores: float32[N, K], cosines by the model, falling.   positives: float32[N], of each query with its
    own positive.
    """

    passages: NDArray[np.int64]
    numbers: NDArray[np.int64]
    scores: NDArray[np.float32]
    positives: NDArray[np.float32]


def mine(
    store: PairStore, embed: Embed, tokenizer: Tokenizer, model: dict[str, str], config: MineConfig, out: Path
) -> About:
    """Write a source anew under `out`, with up to config.negatives hard negatives a query behind those it has.

    model: the searcher's files with their hashes. Candidates lie beside it, and are taken as they are where this model
    found them in these pairs.
    """
    folder = out / f".{store.about.name}.candidates"
    wanted: dict[str, object] = {"pairs": store.about.pairs_sha256, "model": model}
    wanted |= {"bm25_top": config.bm25_top, "dense_top": config.dense_top}
    rows = store.rows(np.arange(store.shape.rows))
    found = load_candidates(folder, wanted)
    if found is None:
        roles = (store.about.query_role, store.about.positive_role)
        found = search(rows, roles, embed, tokenizer, config, folder)
        save_candidates(folder, found, wanted)
    chosen = choose(rows, found, config)
    languages = [name for name, count in store.about.languages.items() for _ in range(count)]
    about = write_store(
        out / store.about.name,
        zip(languages, with_negatives(rows, found, chosen), strict=True),
        name=store.about.name,
        pair=store.about.pair,
        roles=(store.about.query_role, store.about.positive_role),
        licence=store.about.licence,
        settings=store.about.settings,
        dropped=store.about.dropped,
    )
    logger.info("%s: every query has %d negatives or more", about.name, about.negatives)
    return about


def search(
    rows: Sequence[PairRow],
    roles: tuple[Role, Role],
    embed: Embed,
    tokenizer: Tokenizer,
    config: MineConfig,
    folder: Path,
) -> Candidates:
    """Ask BM25 and the model. Vectors lie in files of `folder` meanwhile."""
    first: dict[int, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(text_key(row.positive), number)
    passages = np.fromiter(first.values(), dtype=np.int64)
    place_of = {key: place for place, key in enumerate(first)}
    own = np.array([place_of[text_key(row.positive)] for row in rows])
    queries = [row.query for row in rows]
    texts = [rows[number].positive for number in passages]
    folder.mkdir(parents=True, exist_ok=True)
    query_vectors = embedded(queries, roles[0], embed, folder / "queries.npy")
    passage_vectors = embedded(texts, roles[1], embed, folder / "texts.npy")
    found = []
    if config.dense_top:
        found.append(top_k(query_vectors, passage_vectors, config.dense_top)[1])
    if config.bm25_top:
        found.append(bm25_top(queries, texts, tokenizer, config.bm25_top))
    numbers, scores = joined(np.concatenate(found, axis=1), query_vectors, passage_vectors)
    positives = np.einsum("nh,nh->n", query_vectors, passage_vectors[own]).astype(np.float32)
    for name in ("queries.npy", "texts.npy"):
        (folder / name).unlink()
    return Candidates(passages, numbers, scores, positives)


def embedded(texts: Sequence[str], role: Role, embed: Embed, path: Path) -> NDArray[np.float32]:
    """The texts' vectors, mapped from a file."""
    vectors: NDArray[np.float32] | None = None
    for start in tqdm(range(0, len(texts), EMBEDDED_ROWS), desc=f"embedding, as {role}"):
        part = embed(texts[start : start + EMBEDDED_ROWS], role)
        if vectors is None:
            vectors = open_memmap(path, "w+", dtype=np.float32, shape=(len(texts), part.shape[1]))
        vectors[start : start + len(part)] = part
    assert vectors is not None
    return vectors


def bm25_top(queries: Sequence[str], texts: Sequence[str], tokenizer: Tokenizer, k: int) -> NDArray[np.int64]:
    """The k texts that BM25 over the model's tokens ranks highest, int64[N, k]; the same tokens in every language."""

    def tokens(some: Sequence[str]) -> list[list[str]]:
        return [encoding.tokens for encoding in tokenizer.encode_batch(list(some), add_special_tokens=False)]

    index = bm25s.BM25()
    index.index(tokens(texts), show_progress=False)
    numbers, _ = index.retrieve(tokens(queries), k=min(k, len(texts)), show_progress=False)
    return np.asarray(numbers, dtype=np.int64)


def joined(
    numbers: NDArray[np.int64], queries: NDArray[np.float32], passages: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each row's distinct numbers by falling cosine, NONE behind them. numbers: int64[N, K], with repetitions."""
    ordered = np.sort(numbers, axis=1)
    again = np.zeros_like(ordered, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    scores = np.empty(ordered.shape, dtype=np.float32)
    for row, places in enumerate(ordered):
        scores[row] = passages[places] @ queries[row]
    scores[again] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=1)
    found = np.where(np.isneginf(scores), NONE, np.take_along_axis(ordered, order, axis=1))
    return found, scores


def choose(rows: Sequence[PairRow], found: Candidates, config: MineConfig) -> NDArray[np.int64]:
    """The candidates that pass the rules, best first: int64[N, config.negatives] into passages, NONE behind them.

    A candidate is out where it is known to be right (the text of a positive of the same query, or of the query), ranks
    outside the window, or scores too near the positive, or above it: then it may well be right too. A query that keeps
    fewer than config.filled_to gets passages drawn at random, as far as there are any.
    """
    keys = [text_key(rows[number].positive) for number in found.passages]
    right: dict[int, set[int]] = {}
    for row in rows:
        right.setdefault(text_key(row.query), {text_key(row.query)}).add(text_key(row.positive))
    # Of a positive at a cosine below 0 a share less is more.
    shares = 1 - np.sign(found.positives) * config.relative_margin
    bounds = np.minimum(found.positives - config.absolute_margin, found.positives * shares)
    allowed = (found.numbers != NONE) & (found.scores <= bounds[:, None])
    allowed[:, : config.rank_from] = False
    allowed[:, config.rank_to :] = False
    chosen = np.full((len(rows), config.negatives), NONE, dtype=np.int64)
    for number, row in enumerate(rows):
        known = right[text_key(row.query)]
        passed = [int(place) for place in found.numbers[number][allowed[number]] if keys[place] not in known]
        passed = passed[: config.negatives]
        if len(passed) < config.filled_to:
            drawn = np.random.default_rng(number).permutation(len(keys))[: 4 * config.filled_to].tolist()
            passed += [place for place in drawn if keys[place] not in known and place not in passed]
            passed = passed[: config.filled_to]
        chosen[number, : len(passed)] = passed
    return chosen


def with_negatives(rows: Sequence[PairRow], found: Candidates, chosen: NDArray[np.int64]) -> Iterator[PairRow]:
    """The rows, their own negatives first and then the chosen ones; scores of a teacher are no longer complete."""
    for row, places in zip(rows, chosen, strict=True):
        mined = [rows[found.passages[place]].positive for place in places if place != NONE]
        yield replace(row, negatives=list(dict.fromkeys([*row.negatives, *mined])), scores=[])


def save_candidates(folder: Path, found: Candidates, made_from: dict[str, object]) -> None:
    """Write them so that another start with the same pairs and model finds them."""
    for name in FILES:
        np.save(folder / f"{name}.npy", getattr(found, name))
    write_json(folder / ABOUT_FILE, made_from)


def load_candidates(folder: Path, made_from: dict[str, object]) -> Candidates | None:
    """Those of an earlier search for the same; None where there are none, or of something else."""
    try:
        if json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8")) != made_from:
            return None
        return Candidates(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES})
    except (OSError, ValueError):
        return None
