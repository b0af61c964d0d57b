"""Whole collections of texts to vectors, along the path that a request takes: prompt, tokens, batch, model.

Texts are sorted by length before they are batched, so that padding stays small, and equal texts are computed once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from service.recipe.prompts import PromptedText, Prompts, Role, format_text
from service.recipe.tokens import TokenBatch, pad, tokenize

Vectors = NDArray[np.float32]
Run = Callable[[TokenBatch], Vectors]


class Embed(Protocol):
    """Texts to unit vectors, float32[N, D], in their order."""

    def __call__(self, texts: Sequence[str], role: Role | None, instruction: str | None = None) -> Vectors:
        """role: None is a text as it stands, without a prompt.   instruction: for models that take one."""
        ...


# Enough rows to fill the arithmetic units, few enough that the activations of a batch stay in the cache.
BATCH_TOKENS = 4096
BATCH_ROWS = 64


@dataclass(frozen=True)
class Recipe:
    """What a model was trained to read."""

    tokenizer: Tokenizer
    prompts: Prompts
    max_tokens: int
    pad_id: int

    def rows(self, texts: Iterable[str], role: Role | None, instruction: str | None = None) -> list[NDArray[np.int32]]:
        """Token ids of each text, its role's prompt in front; a model that takes no instruction ignores it."""
        told = instruction if self.prompts.instruct else None
        prompted = [
            PromptedText(text, "query", 0)
            if role is None
            else format_text(text, self.prompts, role, instruction=told if role == "query" else None)
            for text in texts
        ]
        return [tokens.ids for tokens in tokenize(self.tokenizer, prompted, self.max_tokens)]


def embed_collection(
    run: Run,
    recipe: Recipe,
    texts: Sequence[str],
    role: Role | None,
    instruction: str | None = None,
    *,
    progress: bool = False,
) -> Vectors:
    """Vectors of the texts, in their order.   Returns float32[N, D]."""
    distinct, position = _distinct(texts)
    rows = recipe.rows(distinct, role, instruction)
    # None: a bar on a terminal, silence in a log file.
    hidden = None if progress else True
    with tqdm(total=sum(map(len, rows)), unit="token", unit_scale=True, leave=False, disable=hidden) as bar:
        found: list[tuple[list[int], Vectors]] = []
        for numbers in batches_by_length([len(row) for row in rows], BATCH_TOKENS, BATCH_ROWS):
            batch = pad([rows[number] for number in numbers], recipe.pad_id)
            found.append((numbers, run(batch)))
            bar.update(batch.tokens)
    vectors = np.empty((len(rows), found[0][1].shape[1]), dtype=np.float32)
    for numbers, part in found:
        vectors[numbers] = part
    return vectors[position]


def batches_by_length(lengths: Sequence[int], tokens_max: int, rows_max: int) -> list[list[int]]:
    """Divide rows into batches of neighbours in length: padded tokens ≤ tokens_max, or one row alone.

    Returns row numbers, the longest rows first: what does not fit into memory fails at once and not after an hour.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and len(batches[-1]) < rows_max and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_max:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The texts without repetitions, and for each text its place among them."""
    place: dict[str, int] = {}
    position = [place.setdefault(text, len(place)) for text in texts]
    return list(place), position
