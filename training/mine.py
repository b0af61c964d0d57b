"""Hard negatives: passages that BM25 or the model itself finds for a query, and that are not right."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.answers import holds_answer
from training.candidates import (
    ASKED_ROWS,
    NONE,
    Candidates,
    PairKeys,
    blocks_of,
    is_right,
    keep,
    keys_of,
    load_candidates,
    pair_numbers,
    search,
)
from training.collection import Embed
from training.config import MineConfig
from training.errors import BadTrainingData
from training.pair_store import About, PairRow, PairStore, write_store
from training.permutation import key_of, permuted
from training.score import with_scores
from training.score_cache import ScoreCache

logger = logging.getLogger(__name__)

# right: a candidate that answers the query too.   unknown: whether it does, for nobody was asked.
Verdict = Literal["wrong", "right", "holds the answer", "unknown"]
Judge = Callable[[PairRow, Sequence[str]], list[Verdict]]


def mine(
    store: PairStore,
    embed: Embed,
    tokenizer: Tokenizer,
    model: dict[str, str],
    config: MineConfig,
    out: Path,
    cache: ScoreCache | None = None,
) -> About:
    """Write a source anew under `out`, with up to config.negatives hard negatives a query behind those it has.

    model: the searcher's files with their hashes. Candidates lie beside it, and are taken as they are where this model
    found them in these pairs.   cache: a teacher's scores; rows all of whose passages have one get them. Raises
    BadTrainingData where a rule needs scores and there are none.
    """
    folder = candidates_folder(store, out)
    wanted: dict[str, object] = {"pairs": store.about.pairs_sha256, "model": model}
    wanted |= {"bm25_top": config.bm25_top, "dense_top": config.dense_top, "order": "in turns"}
    keys = keys_of(store)
    found = load_candidates(folder, wanted)
    if found is None:
        found = search(store, keys, embed, tokenizer, config, folder)
        keep(folder, wanted)
    verdicts: Counter[Verdict] = Counter()
    languages = np.repeat(np.array(list(store.about.languages)), list(store.about.languages.values()))
    numbered = with_negatives(store, keys, found, config, cache, verdicts)
    about = write_store(
        out / store.about.name,
        ((str(languages[number]), row) for number, row in numbered),
        name=store.about.name,
        pair=store.about.pair,
        roles=(store.about.query_role, store.about.positive_role),
        licence=store.about.licence,
        settings=store.about.settings,
        dropped=store.about.dropped,
    )
    logger.info(
        "%s: every query has %d negatives or more; of the candidates that were judged %s",
        about.name,
        about.negatives,
        dict(verdicts),
    )
    return about


def candidates_folder(store: PairStore, out: Path) -> Path:
    """Where what was found for a source lies."""
    return out / f".{store.about.name}.candidates"


def found_for(store: PairStore, out: Path) -> Candidates:
    """What an earlier mining found for these pairs. Raises BadTrainingData where there was none."""
    found = load_candidates(candidates_folder(store, out), {"pairs": store.about.pairs_sha256})
    if found is None:
        raise BadTrainingData(
            f"nothing was found yet in {out} for the pairs of {store.folder}; mine them by `python -m training mine`"
        )
    return found


def with_negatives(
    store: PairStore,
    keys: PairKeys,
    found: Candidates,
    config: MineConfig,
    cache: ScoreCache | None,
    verdicts: Counter[Verdict],
) -> Iterator[tuple[int, PairRow]]:
    """Each row's number, and the row with its own negatives first and then the chosen ones.

    Behind it, where config.answer says so, the query with each passage that holds its answer.
    """
    judge = judge_of(config, cache)
    known = np.sort(pair_numbers(keys.queries, keys.positives))
    starts = np.concatenate([[0], np.cumsum(list(store.about.languages.values()))])
    for block in blocks_of(store.shape.rows, ASKED_ROWS):
        allowed = allowed_of(block, keys, known, starts, found, config)
        for number, row, ok in zip(block.tolist(), store.rows(block), allowed, strict=True):
            passed = found.numbers[number][ok]
            fill = drawn_of(number, keys, known, starts, found, config)
            # Those that were found and refused come last.
            refused = np.isin(fill, found.numbers[number])
            fill = np.concatenate([fill[~refused], fill[refused]])
            wrong, also_right = choose(
                row, passed, fill, lambda places: _texts(store, found, places), judge, config, verdicts
            )
            mined = replace(row, negatives=list(dict.fromkeys([*row.negatives, *wrong])), scores=[])
            rows = [mined]
            for text in also_right:
                others = [negative for negative in mined.negatives if negative != text]
                rows.append(replace(mined, positive=text, negatives=others))
            if cache is not None:
                rows = list(with_scores(rows, cache))
            yield from ((number, one) for one in rows)
    if verdicts["unknown"] and config.teacher_margin is not None:
        logger.warning("%s: %d candidates have no score", store.about.name, verdicts["unknown"])


def _texts(store: PairStore, found: Candidates, places: Sequence[int]) -> list[str]:
    return [row.positive for row in store.rows(found.passages[np.array(places, dtype=np.int64)])]


def allowed_of(
    block: NDArray[np.int64],
    keys: PairKeys,
    known: NDArray[np.int64],
    starts: NDArray[np.int64],
    found: Candidates,
    config: MineConfig,
) -> NDArray[np.bool_]:
    """Which candidates of some rows pass the rules that need no text: bool[n, K].

    A candidate is out where it is known to be right (the text of a positive of the same query, or of the query), ranks
    outside the window, scores too near the positive, or above it (then it may well be right too), or is of another
    language where that is asked.   known: sorted numbers of all pairs.   starts: int64[L + 1], rows of the languages.
    """
    numbers, cosines = np.asarray(found.numbers[block]), np.asarray(found.positives[block])
    # Of a positive at a cosine below 0 a share less is more.
    shares = 1 - np.sign(cosines) * config.relative_margin
    bounds = np.minimum(cosines - config.absolute_margin, cosines * shares)
    allowed = (numbers != NONE) & (found.scores[block] <= bounds[:, None])
    allowed[:, : config.rank_from] = False
    allowed[:, config.rank_to :] = False
    rows = found.passages[numbers]
    allowed &= ~is_right(keys.queries[block, None], keys.positives[rows], known)
    if config.languages == "same":
        own, other = (np.searchsorted(starts, part, side="right") for part in (block[:, None], rows))
        allowed &= own == other
    return allowed


def drawn_of(
    number: int,
    keys: PairKeys,
    known: NDArray[np.int64],
    starts: NDArray[np.int64],
    found: Candidates,
    config: MineConfig,
) -> NDArray[np.int64]:
    """Passages at random for a row that has too few, those that are not known to be right: int64[N] into passages."""
    low, high = 0, len(found.passages)
    if config.languages == "same":
        language = int(np.searchsorted(starts, number, side="right"))
        low, high = np.searchsorted(found.passages, starts[language - 1 : language + 1]).tolist()
    size = high - low
    places = low + permuted(np.arange(min(4 * config.filled_to, size)), size, key_of(number))
    return places[~is_right(keys.queries[number : number + 1], keys.positives[found.passages[places]], known)]


def choose(
    row: PairRow,
    passed: NDArray[np.integer],
    fill: NDArray[np.integer],
    texts: Callable[[Sequence[int]], list[str]],
    judge: Judge,
    config: MineConfig,
    verdicts: Counter[Verdict],
) -> tuple[list[str], list[str]]:
    """A row's hard negatives, best first, and passages that are right as well.

    passed: candidates, the best of each searcher first.   fill: others, at random, for a row that keeps fewer than
    config.filled_to.   texts: of places among the passages.   verdicts: counted here.   Judged only as far as needed.
    """
    wrong: list[str] = []
    right: list[str] = []
    taken: set[int] = set()
    for places, enough, accepted in (
        (passed, config.negatives, ("wrong",)),
        (fill, config.filled_to, ("wrong", "unknown")),
    ):
        for start in range(0, len(places), config.negatives):
            if len(wrong) >= enough:
                break
            some = [place for place in places[start : start + config.negatives].tolist() if place not in taken]
            taken.update(some)
            passages = texts(some)
            for passage, verdict in zip(passages, judge(row, passages), strict=True):
                verdicts[verdict] += 1
                if verdict in accepted and len(wrong) < enough:
                    wrong.append(passage)
                elif verdict == "holds the answer" and config.answer == "positive":
                    right.append(passage)
    return wrong, right[: config.positives_added]


def judge_of(config: MineConfig, cache: ScoreCache | None) -> Judge:
    """The rules that read the passages: the answer's words, and a teacher's scores."""
    if config.teacher_margin is not None and cache is None:
        raise BadTrainingData(
            "mine.teacher_margin needs a teacher's scores; train one by `python -m training teach` or name one by "
            "--teacher, and let it read by `python -m training score --candidates`"
        )

    def judge(row: PairRow, passages: Sequence[str]) -> list[Verdict]:
        verdicts: list[Verdict] = ["wrong"] * len(passages)
        if config.teacher_margin is not None and cache is not None:
            own, *others = cache.known([(row.query, passage) for passage in (row.positive, *passages)])
            if np.isnan(own):
                raise BadTrainingData(
                    f"the teacher has not read the positive of {row.query[:80]!r}; let it, by `python -m training "
                    "score --candidates`"
                )
            for place, score in enumerate(others):
                if np.isnan(score):
                    verdicts[place] = "unknown"
                elif score >= own - config.teacher_margin:
                    verdicts[place] = "right"
        if config.answer != "keep" and row.answers:
            for place, passage in enumerate(passages):
                if holds_answer(passage, row.answers):
                    verdicts[place] = "holds the answer"
        return verdicts

    return judge
