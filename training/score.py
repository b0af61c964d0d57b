"""A teacher's scores of mined pairs: read once, kept, and written beside each query's passages."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.candidates import NONE, Candidates, blocks_of
from training.collection import batches_by_length
from training.config import TeachConfig
from training.cross_encoder import CrossEncoder
from training.pair_store import About, PairRow, PairStore, write_store
from training.score_cache import Pair, ScoreCache

logger = logging.getLogger(__name__)

# Queries whose pairs are read at a time, and then kept: what a killed run loses.
QUERIES_AT_A_TIME = 500
ROWS_AT_A_TIME = 512


def score_store(store: PairStore, teacher: CrossEncoder, cache: ScoreCache, config: TeachConfig) -> About:
    """Write the source anew in its place, each row with the scores of its positive and its negatives."""
    rows = store.shape.rows
    with tqdm(total=rows, desc=f"scoring {store.about.name}", unit=" queries") as bar:
        for block in blocks_of(rows, QUERIES_AT_A_TIME):
            added = score_pairs([pair for row in store.rows(block) for pair in pairs_of(row)], teacher, cache, config)
            bar.set_postfix(read=added, refresh=False)
            bar.update(len(block))
    about = store.about
    languages = [name for name, count in about.languages.items() for _ in range(count)]
    written = write_store(
        store.folder,
        zip(languages, with_scores(all_rows(store), cache), strict=True),
        name=about.name,
        pair=about.pair,
        roles=(about.query_role, about.positive_role),
        licence=about.licence,
        settings=about.settings,
        dropped=about.dropped,
    )
    logger.info("%s: %d queries are scored", about.name, rows)
    return written


def score_pairs(pairs: Sequence[Pair], teacher: CrossEncoder, cache: ScoreCache, config: TeachConfig) -> int:
    """Read the pairs that nobody has read before, and keep their scores. Returns how many these are."""
    distinct = list(dict.fromkeys(pairs))
    new = [pair for pair, score in zip(distinct, cache.known(distinct), strict=True) if np.isnan(score)]
    if new:
        cache.add(new, raw_scores(new, teacher, config))
    return len(new)


@torch.inference_mode()
def raw_scores(pairs: Sequence[Pair], teacher: CrossEncoder, config: TeachConfig) -> NDArray[np.float32]:
    """What the teacher's head says of each pair, float32[N]; pairs of like length are read together."""
    rows = teacher.tokenize(pairs)
    scores = np.empty(len(rows), dtype=np.float32)
    for places in batches_by_length([len(row.ids) for row in rows], config.chunk_tokens, ROWS_AT_A_TIME):
        scores[places] = teacher.logits([rows[place] for place in places], config.precision).cpu().numpy()
    return scores


def with_scores(rows: Iterable[PairRow], cache: ScoreCache) -> Iterator[PairRow]:
    """The rows with the scores that are kept; those that lack one of theirs have none."""
    for row in rows:
        scores = cache.known(pairs_of(row))
        yield replace(row, scores=[] if np.isnan(scores).any() else scores.tolist())


def pairs_of(row: PairRow) -> list[Pair]:
    """The query with its positive, and then with each negative."""
    return [(row.query, passage) for passage in (row.positive, *row.negatives)]


def all_rows(store: PairStore) -> Iterator[PairRow]:
    """Every row, one at a time."""
    for number in range(store.shape.rows):
        yield from store.rows(np.array([number]))


def score_candidates(
    store: PairStore, found: Candidates, window: range, teacher: CrossEncoder, cache: ScoreCache, config: TeachConfig
) -> int:
    """Read each query with its positive and with what was found for it, for mining's rule on scores.

    window: the ranks that mining looks at. Returns how many pairs nobody had read before.
    """
    added = 0
    with tqdm(total=store.shape.rows, desc=f"scoring candidates of {store.about.name}", unit=" queries") as bar:
        for block in blocks_of(store.shape.rows, QUERIES_AT_A_TIME):
            pairs: list[Pair] = []
            for number, row in zip(block, store.rows(block), strict=True):
                places = found.numbers[number, window.start : window.stop]
                others = store.rows(found.passages[places[places != NONE]])
                pairs += [(row.query, passage) for passage in (row.positive, *(other.positive for other in others))]
            added += score_pairs(pairs, teacher, cache, config)
            bar.update(len(block))
    return added
