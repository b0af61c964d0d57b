"""The consistency filter: a pair stays if a model finds its passage among many others of its source.

English E5 keeps a pair whose passage is among the first 2 of a million random ones for its query, by a model that was
trained on all pairs before (arXiv 2212.03533).
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.candidates import PairKeys, blocks_of, distinct, embedded, keys_of
from training.checkpoint import write_json
from training.collection import Embed
from training.config import ConsistencyConfig
from training.neighbours import PASSAGE_ROWS, QUERY_ROWS
from training.pair_store import About, PairRow, PairStore, write_store
from training.permutation import key_of, permuted

logger = logging.getLogger(__name__)

REASON = "inconsistent"
ABOUT_FILE = "consistency.json"


@dataclass(frozen=True)
class Others:
    """What the rows of one language are compared with.

    rows: range of the language's.   passages: int64[M], rows whose positives these are.
    """

    rows: range
    passages: NDArray[np.int64]


class KnownRight:
    """Which passages are known to be right for a query: those of its pairs, and its own text."""

    def __init__(self, keys: PairKeys, passages: NDArray[np.int64], own: NDArray[np.int64]) -> None:
        """passages: int64[P], rows of the distinct positives.   own: int64[N], which of them each row has."""
        self._queries, self._own = keys.queries, own
        self._by_query = np.argsort(keys.queries)
        self._sorted_queries = keys.queries[self._by_query]
        texts = keys.positives[passages]
        self._by_text = np.argsort(texts)
        self._sorted_texts = texts[self._by_text]

    def places(self, rows: NDArray[np.int64], drawn: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where among some drawn passages those stand that are right for some rows: int64[M] twice.

        drawn: int64[D], rising, into the passages. Returns numbers among `rows`, and among `drawn`.
        """
        asked = self._queries[rows]
        low, high = (np.searchsorted(self._sorted_queries, asked, side=side) for side in ("left", "right"))
        counts = high - low
        of_pairs = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        passages = self._own[self._by_query[np.repeat(low, counts) + within]]
        at = np.minimum(np.searchsorted(self._sorted_texts, asked), len(self._sorted_texts) - 1)
        same = np.flatnonzero(self._sorted_texts[at] == asked)
        number = np.concatenate([of_pairs, same])
        passage = np.concatenate([passages, self._by_text[at[same]]])
        place = np.minimum(np.searchsorted(drawn, passage), len(drawn) - 1)
        there = drawn[place] == passage
        return number[there], place[there]


def filter_consistent(
    store: PairStore, embed: Embed, model: dict[str, str], config: ConsistencyConfig, out: Path, seed: int
) -> About:
    """Write a source anew under `out`, without the pairs whose passage the model does not find for their query.

    model: its files with their hashes, which are kept beside the source.   seed: of the passages that are drawn.
    """
    scratch = out / f".{store.about.name}.vectors"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    keys = keys_of(store)
    passages, own = distinct(keys.positives)
    everyone = np.arange(store.shape.rows)
    queries = embedded(store, everyone, "query", store.about.query_role, embed, scratch / "queries.npy")
    texts = embedded(store, passages, "positive", store.about.positive_role, embed, scratch / "texts.npy")
    kept = np.empty(len(everyone), dtype=bool)
    known = KnownRight(keys, passages, own)
    for others in others_of(store, passages, config, seed):
        drawn = np.searchsorted(passages, others.passages)
        for start in tqdm(range(others.rows.start, others.rows.stop, QUERY_ROWS), desc="comparing", unit=" blocks"):
            block = np.arange(start, min(start + QUERY_ROWS, others.rows.stop))
            before = found_before(queries[block], texts[own[block]], texts, drawn, known.places(block, drawn))
            kept[block] = before < config.top
    dropped = {**store.about.dropped, REASON: int((~kept).sum())}
    about = write_store(
        out / store.about.name,
        _rows(store, kept),
        name=store.about.name,
        pair=store.about.pair,
        roles=(store.about.query_role, store.about.positive_role),
        licence=store.about.licence,
        settings=store.about.settings,
        dropped=dropped,
    )
    made_from = {"pairs": store.about.pairs_sha256, "model": model, "rules": config.model_dump(), "seed": seed}
    write_json(out / store.about.name / ABOUT_FILE, made_from)
    shutil.rmtree(scratch)
    logger.info("%s: %d of %d pairs stay", about.name, int(kept.sum()), len(kept))
    return about


def others_of(store: PairStore, passages: NDArray[np.int64], config: ConsistencyConfig, seed: int) -> Iterator[Others]:
    """For each language the passages that its pairs are compared with: its own where it has enough, else all.

    passages: int64[P], rising, rows of the distinct positives. Drawn by a counter, without any twice.
    """

    def drawn(among: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        count = min(config.passages, len(among))
        return np.sort(among[permuted(np.arange(count), len(among), key_of(seed, number))])

    everywhere, start = drawn(passages, -1), 0
    for number, rows in enumerate(store.about.languages.values()):
        own = passages[np.searchsorted(passages, start) : np.searchsorted(passages, start + rows)]
        enough = len(own) >= config.language_passages_min
        yield Others(range(start, start + rows), drawn(own, number) if enough else everywhere)
        start += rows


def found_before(
    queries: NDArray[np.float32],
    positives: NDArray[np.float32],
    texts: NDArray[np.float32],
    drawn: NDArray[np.int64],
    right: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.int64]:
    """How many of the drawn passages are nearer to each query than its positive is: int64[n].

    queries, positives: [n, H].   texts: [P, H] of all passages.   drawn: int64[D] into them, read piece by piece.
    right: numbers of queries, and places in `drawn` of passages that do not count for them.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block, positive = (torch.from_numpy(np.asarray(part)).to(device) for part in (queries, positives))
    own = (block * positive).sum(dim=1, keepdim=True)
    number, place = (torch.from_numpy(part).to(device) for part in right)
    counts = torch.zeros(len(block), dtype=torch.int64, device=device)
    for first in range(0, len(drawn), PASSAGE_ROWS):
        piece = torch.from_numpy(np.asarray(texts[drawn[first : first + PASSAGE_ROWS]])).to(device)
        cosines = block @ piece.T
        inside = (place >= first) & (place < first + len(piece))
        cosines[number[inside], place[inside] - first] = float("-inf")
        counts += (cosines > own).sum(dim=1)
    found: NDArray[np.int64] = counts.cpu().numpy()
    return found


def _rows(store: PairStore, kept: NDArray[np.bool_]) -> Iterator[tuple[str, PairRow]]:
    languages = np.repeat(np.array(list(store.about.languages)), list(store.about.languages.values()))
    for block in blocks_of(store.shape.rows, QUERY_ROWS):
        staying = block[kept[block]]
        for number, row in zip(staying, store.rows(staying), strict=True):
            yield str(languages[number]), row
