"""Text to token ids, and rows of ids to one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from service.errors import InvalidInput, ModelFileError, name_inputs
from service.recipe.prompts import PromptedText

Direction = Literal["right", "left"]

# What a text of 512 tokens can't be longer than. TEI cuts at the same 250 characters a token; without the cut
# a megabyte of text would be tokenised for the sake of its first few hundred words.
CHARS_PER_TOKEN_MAX = 250
# Of a longer text so much is looked at first, which nearly always is enough. To free the library's 30,000 tokens of a
# text of 128,000 characters alone keeps every other thread waiting for 5 ms.
FIRST_LOOK_CHARS = 16_384
# Enough are so many tokens more than are kept: those near the place of the cut may be others in the whole text.
SPARE_TOKENS = 512


@dataclass(frozen=True)
class Tokens:
    """One text as the engine sees it.

    ids: int32[n], special tokens included, n ≤ the model's longest input.
    counted: how many tokens the text has uncut (a lower bound where the text was cut before tokenising).
    truncated: whether any of it was cut.
    """

    ids: NDArray[np.int32]
    counted: int
    truncated: bool


@dataclass(frozen=True)
class TokenBatch:
    """ids: int64[B, T], padded with the model's pad id.   mask: int64[B, T], 1 = token, 0 = padding."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """B, the number of texts."""
        return int(self.ids.shape[0])

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.mask.sum())


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json; its own truncation and padding are switched off, for both are decided here."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a missing and for a damaged file alike
        raise ModelFileError(f"can't read the tokenizer {path}: {error}; export or pull the model again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[PromptedText], max_tokens: int, direction: Direction = "right"
) -> list[Tokens]:
    """Token ids of each text, cut at max_tokens with prompt and special tokens counted.

    direction says at which end the text loses tokens; the prompt and the closing token always stay.
    Raises InvalidInput for texts that are no Unicode.
    """
    rows: dict[int, Tokens] = {}
    last_look = max_tokens * CHARS_PER_TOKEN_MAX
    for limit_chars in (min(FIRST_LOOK_CHARS, last_look), last_look):
        shortened = {
            index: _shorten(item, limit_chars, direction) for index, item in enumerate(texts) if index not in rows
        }
        # Only where a text loses its start does it matter where in it tokens are.
        offsets = direction == "left"
        encodings = _encode(tokenizer, {index: text for index, (text, _) in shortened.items()}, offsets=offsets)
        for index, (_, was_cut) in shortened.items():
            # Freed one by one: other threads run between.
            encoding = encodings.pop(index)
            enough = not was_cut or len(encoding) >= max_tokens + SPARE_TOKENS or limit_chars == last_look
            if enough:
                rows[index] = _cut(encoding, texts[index].prompt_chars, max_tokens, direction, was_cut)
    return [rows[index] for index in range(len(texts))]


def take_ids(
    ids: Sequence[int], max_tokens: int, vocabulary: int, direction: Direction = "right", *, index: int = 0
) -> Tokens:
    """Ids that the caller tokenised with this model's tokenizer, special tokens included; checked and cut.

    index: the input's place in its request, for the error.
    """
    # Before NumPy sees them: JSON's whole numbers may be larger than 64 bits.
    wrong = next((part for part in ids if not 0 <= part < vocabulary), None)
    if wrong is not None:
        raise InvalidInput(
            f"input {index}: token id {str(wrong)[:40]} is outside this model's vocabulary of {vocabulary}; "
            "send text, or ids of POST /tokenize"
        )
    row = np.asarray(ids, dtype=np.int64)
    counted = int(row.size)
    if counted > max_tokens:
        kept = max_tokens - 1
        row = np.concatenate([row[:kept], row[-1:]]) if direction == "right" else np.concatenate([row[:1], row[-kept:]])
    return Tokens(row.astype(np.int32), counted, counted > max_tokens)


def pad(rows: Sequence[NDArray[np.int32]], pad_id: int, width: int = 0) -> TokenBatch:
    """Stack rows of ids int32[n] into one batch as wide as the longest row, or as `width` where that is wider."""
    size = max(width, *map(len, rows))
    ids = np.full((len(rows), size), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), size), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return TokenBatch(ids, mask)


def _encode(tokenizer: Tokenizer, texts: Mapping[int, str], *, offsets: bool) -> dict[int, Encoding]:
    """The library's encodings by the inputs' places. Raises InvalidInput for texts that are no Unicode.

    offsets: whether each token's place in the text is wanted; without, 45 in place of 53 µs a text of 29 tokens.
    """
    encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    try:
        return dict(zip(texts, encode(list(texts.values())), strict=True))
    except TypeError as error:
        wrong = [index for index, text in texts.items() if any("\ud800" <= char <= "\udfff" for char in text)]
        raise InvalidInput(
            f"{name_inputs(wrong)}: half of a surrogate pair can't be tokenised; send the text as UTF-8"
        ) from error


def _shorten(item: PromptedText, limit_chars: int, direction: Direction) -> tuple[str, bool]:
    """The prompt and limit_chars of the text, and whether that is less than there is."""
    text = item.text
    if len(text) <= item.prompt_chars + limit_chars:
        return text, False
    if direction == "right":
        return text[: item.prompt_chars + limit_chars], True
    return text[: item.prompt_chars] + text[-limit_chars:], True


def _cut(encoding: Encoding, prompt_chars: int, max_tokens: int, direction: Direction, was_cut: bool) -> Tokens:
    ids = np.asarray(encoding.ids, dtype=np.int32)
    counted = int(ids.size)
    if counted <= max_tokens:
        return Tokens(ids, counted, was_cut)
    closing = int(encoding.special_tokens_mask[-1])
    if direction == "right":
        kept = [ids[: max_tokens - closing], ids[counted - closing :]]
    else:
        # A prompt longer than the limit loses its end: what is cut is then all of the text.
        head = min(_prompt_tokens(encoding, prompt_chars), max_tokens - closing)
        kept = [ids[:head], ids[counted - (max_tokens - head) :]]
    return Tokens(np.concatenate(kept), counted, True)


def _prompt_tokens(encoding: Encoding, prompt_chars: int) -> int:
    """How many leading tokens belong to the opening special token and the prompt."""
    count = 0
    # Offsets are in characters of the prompted text; special tokens have (0, 0).
    for (_, stop), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        if not special and stop > prompt_chars:
            break
        count += 1
    return count
