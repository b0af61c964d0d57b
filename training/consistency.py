"""The consistency filter: a pair stays if a model finds its passage among many others of its source.

English E5 keeps a pair whose passage is among the first 2 of a million random ones for its query (arXiv 2212.03533,
section 4.1); which model decides there is one trained on all pairs before.
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

from training.candidates import PairKeys, blocks_of, distinct, embedded, is_right, keys_of, pair_numbers
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
    known = np.sort(pair_numbers(keys.queries, keys.positives))
    for others in others_of(store, passages, config, seed):
        drawn = np.searchsorted(passages, others.passages)
        for start in tqdm(range(others.rows.start, others.rows.stop, QUERY_ROWS), desc="comparing", unit=" blocks"):
            block = np.arange(start, min(start + QUERY_ROWS, others.rows.stop))
            before = found_before(queries[block], texts[own[block]], block, texts, drawn, passages, keys, known)
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
    rows: NDArray[np.int64],
    texts: NDArray[np.float32],
    drawn: NDArray[np.int64],
    passages: NDArray[np.int64],
    keys: PairKeys,
    known: NDArray[np.int64],
) -> NDArray[np.int64]:
    """How many of the drawn passages are nearer to each query than its positive is: int64[n].

    queries, positives: [n, H], of `rows`.   texts: [P, H] of all passages.   drawn: into them.   known: sorted numbers
    of all pairs. Passages that are known to be right for the query, and its own text, do not count.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block, positive = (torch.from_numpy(np.asarray(part)).to(device) for part in (queries, positives))
    own = (block * positive).sum(dim=1, keepdim=True)
    counts = np.zeros(len(rows), dtype=np.int64)
    for first in range(0, len(drawn), PASSAGE_ROWS):
        some = drawn[first : first + PASSAGE_ROWS]
        piece = torch.from_numpy(np.asarray(texts[some])).to(device)
        # Few are nearer: only those are looked up.
        row, place = (part.cpu().numpy() for part in (block @ piece.T > own).nonzero(as_tuple=True))
        right = is_right(keys.queries[rows[row]], keys.positives[passages[some[place]]], known)
        counts += np.bincount(row[~right], minlength=len(rows))
    return counts


def _rows(store: PairStore, kept: NDArray[np.bool_]) -> Iterator[tuple[str, PairRow]]:
    languages = np.repeat(np.array(list(store.about.languages)), list(store.about.languages.values()))
    for block in blocks_of(store.shape.rows, QUERY_ROWS):
        staying = block[kept[block]]
        for number, row in zip(staying, store.rows(staying), strict=True):
            yield str(languages[number]), row
