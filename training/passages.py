"""Passages put together from sentences of one language, and a question to each.

Sentences with a translation there are of every language, passages with questions of a few. A model that has read
sentences alone is lost in a passage; one that has to find the passage of a sentence among others of the same language
learns to keep what each sentence says.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.recipe.pooling import l2_normalize
from training.batches import PrefixIds, room_for_text, with_prefix
from training.token_store import TokenStore

# Less than this is a sentence.
PASSAGE_TOKENS_MIN = 64
# Half of the questions are in another language, the others in words of the passage: a part of a sentence, never all.
TRANSLATED_QUESTIONS = 0.5
PART_MIN, PART_MAX = 0.3, 0.7


@dataclass(frozen=True)
class Passages:
    """members: int64[M], the rows of a batch, passage by passage.   starts: int64[G], the first place of each passage.

    asked: int64[G], the row of each passage that its question is about.   translated: bool[G], whether it is that
    row's translation.
    """

    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    asked: NDArray[np.int64]
    translated: NDArray[np.bool_]

    @property
    def groups(self) -> list[NDArray[np.int64]]:
        """The rows of each passage."""
        return np.split(self.members, self.starts[1:])


def put_together(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], tokens_max: int, rng: np.random.Generator
) -> Passages:
    """Fill passages of PASSAGE_TOKENS_MIN to tokens_max tokens with rows in their order, and choose the questions.

    rows: int64[M], places in a batch.   lengths: int64[M], tokens of each. A sentence that would not fit whole begins
    the next passage, so that no question is about what was cut off.
    """
    starts, shortest = [0], min(PASSAGE_TOKENS_MIN, tokens_max)
    wanted, filled = rng.integers(shortest, tokens_max, endpoint=True), 0
    for place, length in enumerate(lengths.tolist()):
        if filled and filled + length > wanted:
            starts.append(place)
            wanted, filled = rng.integers(shortest, tokens_max, endpoint=True), 0
        filled += length
    bounds = np.array(starts, dtype=np.int64)
    sizes = np.diff([*starts, len(rows)])
    asked = rows[bounds + (rng.random(len(bounds)) * sizes).astype(np.int64)]
    return Passages(rows, bounds, asked, rng.random(len(bounds)) < TRANSLATED_QUESTIONS)


def passage_rows(
    made: Passages,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    store: TokenStore,
    prefixes: PrefixIds,
    max_tokens: int,
    rng: np.random.Generator,
) -> list[NDArray[np.int32]]:
    """Token rows as the student reads them: G passages, and behind them the G questions in the same order.

    pairs: text numbers of the sentences and of their translations, int64[B] each.   max_tokens: of a row, prefix and
    special tokens counted.
    """
    sentences, translations = pairs
    room = room_for_text(prefixes.passage, max_tokens)
    rows = [with_prefix(prefixes.passage, tokens_of(store, sentences[group], room)) for group in made.groups]
    room = room_for_text(prefixes.query, max_tokens)
    for asked, translated in zip(made.asked.tolist(), made.translated.tolist(), strict=True):
        if translated:
            question = store.row(translations[asked], room)
        else:
            question = part_of(store.row(sentences[asked], room), rng)
        rows.append(with_prefix(prefixes.query, question))
    return rows


def directions(vectors: torch.Tensor, made: Passages) -> torch.Tensor:
    """Where each passage lies by its sentences.   vectors: [M, H], of made.members.   Returns unit vectors [G, H]."""
    lengths = torch.tensor([len(group) for group in made.groups])
    return l2_normalize(torch.segment_reduce(vectors, "sum", lengths=lengths))


def part_of(tokens: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Some neighbouring tokens, PART_MIN to PART_MAX of them, at least one where there is one."""
    length = min(len(tokens), max(1, round(len(tokens) * rng.uniform(PART_MIN, PART_MAX))))
    start = rng.integers(0, len(tokens) - length, endpoint=True)
    return tokens[start : start + length]


def tokens_of(store: TokenStore, texts: NDArray[np.int64], tokens_max: int) -> NDArray[np.int32]:
    """The texts one behind the other, cut at tokens_max."""
    joined: NDArray[np.int32] = np.concatenate([store.row(text, tokens_max) for text in texts.tolist()])
    return joined[:tokens_max]
