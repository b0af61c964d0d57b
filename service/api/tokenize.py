"""The tokenizer alone, as Text Embeddings Inference has it: POST /tokenize and POST /decode.

Contract: huggingface/text-embeddings-inference, router/src/http/{server,types}.rs, version 1.9.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import orjson
from fastapi import APIRouter
from pydantic import WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response
from tokenizers import Encoding, Tokenizer

from service.api.answering import Parts, json_response
from service.api.facade import INTEGER, TEXT, array_of, object_of
from service.api.options import InputTypeName, Options, Texts, ask_of
from service.api.reading import Body, embedder_of, parse_inputs_in_turns, parse_texts, read
from service.api.schema import schema_of
from service.api.tei import TEI
from service.asking import prompted
from service.errors import InvalidInput, name_inputs
from service.recipe.prompts import PromptedText
from service.recipe.tokens import take_ids

FACADE = TEI
router = APIRouter()

# Nothing is cut, and some 300 bytes are answered a token: ten megabytes of text would take gigabytes.
TOKENIZE_CHARS_MAX = 100_000
TOKENS_A_SLICE = 4096

Ids = Annotated[
    object,
    WithJsonSchema(
        {"type": "array", "items": {"oneOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}}
    ),
]


class TokenizeBody(Body):
    """POST /tokenize."""

    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: InputTypeName | None = None
    input_type: InputTypeName | None = None


class DecodeBody(Body):
    """POST /decode."""

    ids: Ids
    skip_special_tokens: bool = True


_TOKEN = object_of(
    id=INTEGER,
    text=TEXT,
    special={"type": "boolean"},
    start={"type": ["integer", "null"]},
    stop={"type": ["integer", "null"]},
)


@router.post(
    "/tokenize",
    openapi_extra=schema_of(TokenizeBody, examples={"a query": {"inputs": "tea", "prompt_name": "query"}}),
    responses=TEI.responses(
        "A list of tokens for each text.",
        array_of(array_of(_TOKEN)),
        [
            [
                {"id": 0, "text": "<s>", "special": True, "start": None, "stop": None},
                {"id": 41, "text": "tea", "special": False, "start": 7, "stop": 10},
            ]
        ],
    ),
    summary="Texts to tokens",
)
async def tokenize(request: Request) -> Response:
    """Every token of each text, prompt included, never cut; start and stop are bytes of the prompted text."""
    body = await read(request, TokenizeBody)
    embedder = embedder_of(request)
    texts = parse_texts(body.inputs, "inputs", embedder.settings.max_inputs, empty=True)
    ask = ask_of(request, [*texts], Options(prompt_name=body.prompt_name, input_type=body.input_type))
    if (characters := sum(map(len, texts))) > TOKENIZE_CHARS_MAX:
        raise InvalidInput(f"{characters} characters > {TOKENIZE_CHARS_MAX} a request; split the request")
    tokenizer, special = embedder.model.tokenizer, body.add_special_tokens
    items = prompted(embedder.model, embedder.settings.default_role, ask)
    parts = await embedder.beside_the_loop(lambda: _tokens_json(tokenizer, items, special))
    return Parts(parts, [], b"application/json")


@router.post(
    "/decode",
    openapi_extra=schema_of(DecodeBody, examples={"two lists": {"ids": [[0, 41, 2], [0, 42, 2]]}}),
    responses=TEI.responses("A text for each list of ids.", array_of(TEXT), ["tea", "milk"]),
    summary="Token ids to texts",
)
async def decode(request: Request) -> Response:
    """One text for each list of ids."""
    body = await read(request, DecodeBody)
    embedder = embedder_of(request)
    tokenizer, skip = embedder.model.tokenizer, body.skip_special_tokens
    rows = await parse_inputs_in_turns(request, body.ids, "ids", empty=True)
    wrong = [index for index, row in enumerate(rows) if isinstance(row, str)]
    if wrong:
        raise InvalidInput(f"`ids` must hold token ids; {name_inputs(wrong)} is a text")
    ids = [row for row in rows if isinstance(row, list)]
    if (count := sum(map(len, ids))) > TOKENIZE_CHARS_MAX:
        raise InvalidInput(f"{count} token ids > {TOKENIZE_CHARS_MAX} a request; split the request")

    def texts() -> list[str]:
        for index, row in enumerate(ids):
            take_ids(row, len(row), tokenizer.get_vocab_size(), index=index)
        found: list[str] = tokenizer.decode_batch(ids, skip_special_tokens=skip)
        return found

    return json_response(await embedder.beside_the_loop(texts))


def _tokens_json(tokenizer: Tokenizer, texts: list[PromptedText], special: bool) -> list[bytes]:
    """A list of tokens for each text, as JSON in parts: one call for all would let no other Python run meanwhile."""
    parts: list[bytes] = []
    encodings = tokenizer.encode_batch([item.text for item in texts], add_special_tokens=special)
    for number, (encoding, item) in enumerate(zip(encodings, texts, strict=True)):
        parts.append(b",[" if number else b"[[")
        tokens = _tokens_of(encoding, item.text)
        for start in range(0, len(tokens), TOKENS_A_SLICE):
            piece = orjson.dumps(tokens[start : start + TOKENS_A_SLICE])[1:-1]
            parts.append(b"," + piece if start else piece)
        parts.append(b"]")
    return [b"".join(parts[start : start + 64]) for start in range(0, len(parts), 64)] + [b"]"]


def _tokens_of(encoding: Encoding, text: str) -> list[dict[str, object]]:
    # The library counts characters, TEI's contract bytes.
    at = np.cumsum([0, *(len(char.encode("utf-8")) for char in text)])
    return [
        {
            "id": token_id,
            "text": token if special else text[start:stop],
            "special": bool(special),
            "start": None if special else int(at[start]),
            "stop": None if special else int(at[stop]),
        }
        for token_id, token, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        )
    ]
