"""Token ids, cuts and padding, with the shipped tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from faulty_engine import SHIPPED
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from service.errors import InvalidInput, ModelFileError
from service.recipe.prompts import E5_PROMPTS, PromptedText, Role, format_text
from service.recipe.spec import TOKENIZER_FILE
from service.recipe.tokens import FIRST_LOOK_CHARS, load_tokenizer, pad, take_ids, tokenize

PATH = SHIPPED / TOKENIZER_FILE
TOKENIZER: Tokenizer = load_tokenizer(PATH)
LONG = "wind and weather " * 600


def prompted(text: str, role: Role = "query") -> PromptedText:
    return format_text(text, E5_PROMPTS, role)


def test_a_short_text_is_whole_and_framed_by_special_tokens() -> None:
    (row,) = tokenize(TOKENIZER, [prompted("Grüße aus Köln")], 512)
    assert not row.truncated
    assert row.counted == len(row.ids)
    assert TOKENIZER.id_to_token(int(row.ids[0])) == "<s>"
    assert TOKENIZER.id_to_token(int(row.ids[-1])) == "</s>"


def test_the_limit_counts_prompt_and_special_tokens_and_is_inclusive() -> None:
    (row,) = tokenize(TOKENIZER, [prompted("wind and weather")], 512)
    size = len(row.ids)
    assert not tokenize(TOKENIZER, [prompted("wind and weather")], size)[0].truncated
    cut = tokenize(TOKENIZER, [prompted("wind and weather")], size - 1)[0]
    assert (cut.truncated, len(cut.ids), cut.counted) == (True, size - 1, size)


def test_cutting_right_keeps_the_beginning_and_the_closing_token() -> None:
    (row,) = tokenize(TOKENIZER, [prompted(LONG)], 512)
    whole = TOKENIZER.encode("query: " + LONG).ids
    assert row.ids.tolist() == [*whole[:511], whole[-1]]
    assert row.counted == len(whole)


def test_cutting_left_keeps_the_prompt_and_the_end() -> None:
    (row,) = tokenize(TOKENIZER, [prompted("first words. " + LONG + "the end")], 512, "left")
    prompt = TOKENIZER.encode("query: ", add_special_tokens=False).ids
    text = TOKENIZER.decode(row.ids.tolist())
    assert len(row.ids) == 512
    assert row.ids[1 : 1 + len(prompt)].tolist() == prompt
    assert text.endswith("the end")
    assert "first words" not in text


@pytest.mark.parametrize("direction", ["left", "right"])
def test_a_huge_text_is_cut_before_tokenising_and_still_reported(direction: str) -> None:
    (row,) = tokenize(TOKENIZER, [prompted("ab " * 300_000)], 512, direction)  # type: ignore[arg-type]
    assert row.truncated
    assert len(row.ids) == 512
    # Most of this text is never looked at.
    assert row.counted <= FIRST_LOOK_CHARS


@pytest.mark.parametrize("direction", ["left", "right"])
def test_a_long_text_has_the_tokens_of_the_whole_one(direction: str) -> None:
    words = [f"word{number}" for number in range(20_000)]
    (row,) = tokenize(TOKENIZER, [prompted(" ".join(words))], 512, direction)  # type: ignore[arg-type]
    whole = TOKENIZER.encode("query: " + " ".join(words)).ids
    assert row.truncated
    if direction == "right":
        assert row.ids.tolist()[:-1] == whole[:511]
    else:
        assert row.ids.tolist()[-500:] == whole[-500:]


def test_a_text_whose_tokens_have_many_characters_is_looked_at_whole() -> None:
    text = "a" + " " * 60_000 + "b"
    (row,) = tokenize(TOKENIZER, [prompted(text)], 512)
    assert not row.truncated
    assert row.ids.tolist() == TOKENIZER.encode("query: " + text).ids


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400), st.sampled_from(["left", "right"]), st.integers(8, 64))
def test_any_text_gives_at_most_the_limit_and_says_whether_it_was_cut(text: str, side: str, limit: int) -> None:
    (row,) = tokenize(TOKENIZER, [prompted(text)], limit, side)  # type: ignore[arg-type]
    whole = TOKENIZER.encode("query: " + text if not text.startswith("query: ") else text).ids
    assert len(row.ids) <= limit
    assert row.truncated == (len(whole) > limit)
    assert row.counted == len(whole)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 900), st.integers(0, 900), st.sampled_from(["left", "right"]))
def test_a_prompt_longer_than_the_limit_is_cut_to_it_too(prompt_words: int, words: int, side: str) -> None:
    prompt = "word " * prompt_words
    text = PromptedText(prompt + "text " * words, "query", len(prompt))
    (row,) = tokenize(TOKENIZER, [text], 512, side)  # type: ignore[arg-type]
    assert len(row.ids) <= 512
    assert TOKENIZER.id_to_token(int(row.ids[-1])) == "</s>"


def test_ids_of_the_caller_are_checked_against_the_vocabulary() -> None:
    size = TOKENIZER.get_vocab_size()
    assert take_ids([0, size - 1, 2], 512, size).ids.tolist() == [0, size - 1, 2]
    for wrong in (-1, size, 2**40):
        with pytest.raises(InvalidInput, match=str(wrong)):
            take_ids([0, wrong, 2], 512, size)


def test_too_many_ids_of_the_caller_are_cut_at_either_end() -> None:
    ids = list(range(20))
    assert take_ids(ids, 5, 100).ids.tolist() == [0, 1, 2, 3, 19]
    assert take_ids(ids, 5, 100, "left").ids.tolist() == [0, 16, 17, 18, 19]
    assert take_ids(ids, 5, 100).counted == 20


def test_padding_fills_with_the_pad_id_and_masks_it() -> None:
    batch = pad([np.array([5, 6, 7], np.int32), np.array([8], np.int32)], pad_id=1)
    assert batch.ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch.ids.dtype, batch.mask.dtype) == (np.int64, np.int64)
    assert (batch.rows, batch.tokens) == (2, 4)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe"])
def test_a_missing_or_damaged_tokenizer_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(path)
