"""Strategies for hostile texts, JSON and bytes, and what has to hold for the tokens of any text."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import strategies as st
from tokenizers import Tokenizer

from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, ROLES, PromptedText, format_text
from service.recipe.tokens import CHARS_PER_TOKEN_MAX, FIRST_LOOK_CHARS, Direction, Tokens

# Half a surrogate pair: Python's str holds it, UTF-8 does not.
SURROGATES = st.characters(categories=["Cs"])
WORDS = st.sampled_from(
    [
        "query: ",
        "passage: ",
        "Instruct: ",
        "\nQuery: ",
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "\0",
        "\ufeff",
        "\u202e",
        "e\u0301" * 40,
        "\u0301" * 300,
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "東京都庁",
        "ﷺ" * 20,
        "ก็็็็",
        " " * 500,
        "\n\t\r\x0b",
        "A" * 3000,
        "x" * 100_000,
        "多" * 30_000,
    ]
)
CLEAN_TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=60)), max_size=6).map("".join)
TEXTS = st.one_of(CLEAN_TEXTS, st.text(st.one_of(SURROGATES, st.characters()), max_size=30))

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(st.one_of(SURROGATES, st.characters()), max_size=20),
)
KEYS = st.sampled_from(
    [
        "inputs",
        "input",
        "ids",
        "input_type",
        "prompt_name",
        "instruction",
        "truncate",
        "truncation_direction",
        "normalize",
        "dimensions",
        "encoding_format",
        "output_dtype",
        "model",
        "source_sentence",
        "sentences",
        "parameters",
        "add_special_tokens",
        "skip_special_tokens",
        "__proto__",
        "",
    ]
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=12), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=30,
)
OBJECTS = st.dictionaries(KEYS, JSON, min_size=1, max_size=6)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON of roughly the right fields, in some encoding, with some of its bytes damaged."""
    value = draw(st.one_of(OBJECTS, JSON))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    body = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16"])), "surrogatepass")
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        cut = draw(st.integers(0, 4))
        body = body[:at] + draw(st.binary(max_size=4)) + body[at + cut :]
    return body


@st.composite
def prompted(draw: st.DrawFn, texts: st.SearchStrategy[str] = CLEAN_TEXTS) -> PromptedText:
    """A text with the prompt of any role, of a plain or an instruct model."""
    prompts = draw(st.sampled_from([E5_PROMPTS, E5_INSTRUCT_PROMPTS]))
    instruction = draw(st.one_of(st.none(), st.text(min_size=1, max_size=200))) if prompts.instruct else None
    role = draw(st.sampled_from([None, *ROLES]))
    return format_text(draw(texts), prompts, role, instruction=instruction)


def check_tokens(
    found: Tokens, item: PromptedText, tokenizer: Tokenizer, max_tokens: int, direction: Direction
) -> None:
    """What the engine and the answer rely on."""
    chars = len(item.text) - item.prompt_chars
    is_cut = chars > max_tokens * CHARS_PER_TOKEN_MAX
    ids = found.ids
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert 2 <= len(ids) <= max_tokens
    assert (ids[0], ids[-1]) == (tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>"))
    assert ids.min() >= 0
    assert ids.max() < tokenizer.get_vocab_size()
    assert found.truncated == (found.counted > len(ids) or is_cut)
    if is_cut:
        return
    whole = np.asarray(tokenizer.encode(item.text).ids, dtype=np.int32)
    if chars <= FIRST_LOOK_CHARS:
        assert found.counted == len(whole)
    assert len(ids) <= found.counted <= len(whole) + 1
    if not found.truncated:
        assert np.array_equal(ids, whole)
    elif direction == "right":
        assert np.array_equal(ids[:-1], whole[: len(ids) - 1])
    else:
        # The prompt from the start, the rest from the end; where they meet is anywhere between.
        gap = len(whole) - len(ids)
        assert any(
            np.array_equal(ids[:head], whole[:head]) and np.array_equal(ids[head:], whole[head + gap :])
            for head in range(len(ids) + 1)
        )
