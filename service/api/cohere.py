"""Cohere's POST /v2/embed, and the /v1/embed of its older client: input types are E5's roles.

Contract: Cohere API reference, "Embed", and what the cohere package 7.3 sends and reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from service.api.answering import answer, respond
from service.api.encoding import TYPES, Kind, json_list, json_texts, scale_of, typed
from service.api.facade import INTEGER, NUMBERS, TEXT, Facade, array_of, object_of
from service.api.options import InputTypeName, Options, Texts, ask_of, role_of_model
from service.api.reading import Body, embedder_of, kind_of, parse_texts, read, upper
from service.api.schema import schema_of
from service.asking import Answer
from service.embedder import Embedder
from service.errors import InvalidInput, Me5Error, name_inputs


def _error_body(error: Me5Error, _: int) -> dict[str, object]:
    return {"message": error.message}


FACADE = Facade(prefix="/v2/", error_body=_error_body, error_schema=object_of(message=TEXT))
router = APIRouter()

# Looked at one by one, in a few milliseconds.
PARTS_MAX = 10_000
# Each of the types, given twice even.
KINDS_MAX = 2 * len(TYPES)

Truncate = Annotated[Literal["NONE", "START", "END"], BeforeValidator(upper)]


def few(value: object) -> object:
    """What may be a list of types. To tell of each of a hundred thousand wrong ones would take a third of a second."""
    if isinstance(value, list) and len(value) > KINDS_MAX:
        raise InvalidInput(f"`embedding_types` holds {len(value)} types, the limit is {KINDS_MAX}; send each once")
    return value


Kinds = Annotated[list[Kind], BeforeValidator(few)]
_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string", "minLength": 1}},
}
_CONTENT = {
    "type": "object",
    "required": ["content"],
    "properties": {"content": {"type": "array", "minItems": 1, "items": _PART}},
}
# Checked by hand, as texts are.
Contents = Annotated[object, WithJsonSchema({"type": "array", "items": _CONTENT})]
Nothing = Annotated[object, WithJsonSchema({"type": "null"})]


class EmbedBody(Body):
    """POST /v2/embed and /v1/embed."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["texts"]}, {"required": ["inputs"]}]})
    model: str | None = None
    input_type: InputTypeName | None = None
    texts: Texts | None = None
    inputs: Contents | None = Field(default=None, description="texts in parts, in place of `texts`")
    images: Nothing = Field(default=None, description="refused: the model reads text")
    embedding_types: Kinds | None = Field(
        default=None,
        description="float; base64 of little-endian float32; int8: round(component × scale) from -127 to 127, the "
        "scale in /info; uint8: int8 + 128; ubinary: a bit a component, 1 where it is above zero, eight to a byte, the "
        "first in the highest bit; binary: ubinary - 128",
    )
    truncate: Truncate | None = Field(default="END", description="START cuts the beginning, NONE refuses")
    max_tokens: int | None = Field(default=None, ge=1, description="tokens a text, prompt and special tokens included")
    output_dimension: int | None = None
    priority: int | None = Field(
        default=None, ge=0, le=999, description="0: interactive, more: bulk; by role and size unless given"
    )


_ROWS = array_of(NUMBERS)
_BY_TYPE: dict[str, object] = {
    "type": "object",
    "properties": {kind: array_of(TEXT) if kind == "base64" else _ROWS for kind in TYPES},
    "additionalProperties": False,
}
_META: dict[str, object] = {
    "type": "object",
    "required": ["api_version", "billed_units"],
    "properties": {
        "api_version": object_of(version=TEXT),
        "billed_units": object_of(input_tokens=INTEGER),
        "warnings": array_of(TEXT),
    },
}
_EXAMPLES: dict[str, JsonValue] = {
    "passages": {
        "model": "me5_nano",
        "input_type": "search_document",
        "texts": ["Tea turns bitter.", "It is 368 metres tall."],
        "embedding_types": ["float", "int8", "ubinary"],
        "truncate": "END",
    },
    "a query": {"model": "me5_nano", "input_type": "search_query", "texts": ["how tall is it?"], "priority": 0},
    "texts in parts": {
        "model": "me5_nano",
        "input_type": "clustering",
        "inputs": [{"content": [{"type": "text", "text": "Tea turns bitter."}]}],
        "max_tokens": 64,
        "output_dimension": 64,
    },
}


def _route(version: str, embeddings: Mapping[str, object], example: object) -> dict[str, Any]:
    """A route's description."""
    schema = object_of(
        id=TEXT,
        texts=array_of(TEXT),
        embeddings=embeddings,
        meta=_META,
        response_type={"type": "string", "enum": ["embeddings_by_type", "embeddings_floats"]},
    )
    shown = {
        "id": "ba3ebc3d19a84c5c-2",
        "texts": ["how tall is it?"],
        "embeddings": example,
        "meta": {"api_version": {"version": version}, "billed_units": {"input_tokens": 9}},
        "response_type": "embeddings_by_type" if isinstance(example, dict) else "embeddings_floats",
    }
    return {
        "openapi_extra": schema_of(EmbedBody, examples=_EXAMPLES),
        "responses": FACADE.responses("The vectors by type, in the order of the texts.", schema, shown),
    }


_VECTORS = [[0.0208, -0.0345, 0.0513]]


@router.post("/v2/embed", summary="Cohere's embeddings", **_route("2", _BY_TYPE, {"float": _VECTORS}))
async def embed(request: Request) -> Response:
    """The vectors in each of the types asked for. More than Cohere's 96 texts are taken, up to ME5_MAX_INPUTS."""
    body = await read(request, EmbedBody)
    return await _answer(request, body, version="2", kinds=body.embedding_types or ["float"])


@router.post(
    "/v1/embed",
    summary="Cohere's embeddings, as its older client reads them",
    **_route("1", {"oneOf": [_BY_TYPE, _ROWS]}, _VECTORS),
)
async def embed_v1(request: Request) -> Response:
    """The same as /v2/embed, but a plain list of vectors where no types are asked for."""
    body = await read(request, EmbedBody)
    return await _answer(request, body, version="1", kinds=body.embedding_types or [])


async def _answer(request: Request, body: EmbedBody, *, version: str, kinds: list[Kind]) -> Response:
    """kinds: none for a plain list of float vectors."""
    embedder = embedder_of(request)
    texts = texts_of(body, embedder.settings.max_inputs)
    options = Options(
        input_type=body.input_type,
        truncate=body.truncate != "NONE",
        truncation_direction="left" if body.truncate == "START" else "right",
    )
    wanted, dimension = body.output_dimension, embedder.model.spec.dimension
    if wanted is not None and not 0 < wanted <= dimension:
        raise InvalidInput(f"`output_dimension` is {wanted}, this model has 1 to {dimension}")
    role = role_of_model(request, body.model or "")
    ask = ask_of(request, [*texts], options, dimensions=body.output_dimension, default_role=role)
    if body.priority is not None and ask.lane is None:
        ask = replace(ask, lane="bulk" if body.priority else "interactive")
    found = await answer(request, replace(ask, max_tokens=body.max_tokens))
    return await respond(request, found, _pieces(request, embedder, body, texts, found, version, kinds))


def texts_of(body: EmbedBody, max_inputs: int) -> list[str]:
    """The texts of either of the fields that may hold them. Raises InvalidInput for everything else."""
    if body.images is not None:
        raise InvalidInput("`images` can't be embedded: this model reads text; send `texts`")
    if (body.input_type or "").lower() == "image":
        raise InvalidInput(
            "`input_type` image can't be embedded: this model reads text; send search_document or search_query"
        )
    if (body.texts is None) == (body.inputs is None):
        raise InvalidInput("send the texts in one of `texts` and `inputs`")
    if body.texts is not None:
        return parse_texts(body.texts, "texts", max_inputs)
    if not isinstance(body.inputs, list):
        raise InvalidInput(f"`inputs` must be a list of objects with `content`, not {kind_of(body.inputs)}")
    # Not looked through for nothing where it is refused for its length.
    given = body.inputs[: max_inputs + 1]
    parts = sum(
        len(item["content"]) for item in given if isinstance(item, dict) and isinstance(item.get("content"), list)
    )
    if parts > PARTS_MAX:
        raise InvalidInput(f"`inputs` holds {parts} parts, the limit is {PARTS_MAX} a request; split the request")
    found = [_text_of(item, index) for index, item in enumerate(given)]
    return parse_texts(found, "inputs", max_inputs)


def _pieces(
    request: Request,
    embedder: Embedder,
    body: EmbedBody,
    texts: list[str],
    found: Answer,
    version: str,
    kinds: list[Kind],
) -> Iterator[bytes]:
    """The answer as JSON, in pieces."""
    yield b'{"id":%s,"texts":' % orjson.dumps(request.scope["me5_id"].decode("ascii"))
    yield from json_texts(texts)
    yield b',"embeddings":'
    scale = scale_of(embedder.model.golden, body.output_dimension)
    for number, kind in enumerate(dict.fromkeys(kinds)):
        yield b'%s"%s":' % (b"," if number else b"{", kind.encode("ascii"))
        yield from json_list(typed(found.vectors, kind, scale), "base64" if kind == "base64" else "float")
    if kinds:
        yield b"}"
    else:
        yield from json_list(typed(found.vectors, "float", scale), "float")
    meta: dict[str, object] = {
        "api_version": {"version": version},
        "billed_units": {"input_tokens": sum(found.tokens)},
    }
    if warnings := _warnings(
        found, min(body.max_tokens or embedder.model.spec.max_tokens, embedder.model.spec.max_tokens)
    ):
        meta["warnings"] = warnings
    rest = {"meta": meta, "response_type": "embeddings_by_type" if kinds else "embeddings_floats"}
    yield b"," + orjson.dumps(rest)[1:]


def _warnings(found: Answer, longest: int) -> list[str]:
    """What happened to texts that their sender should know of."""
    many, warnings = len(found.tokens), []
    if cut := found.truncated:
        warnings.append(f"{len(cut)} of {many} texts cut at {longest} tokens, prompt included: {name_inputs(cut)}")
    if brought := found.brought:
        warnings.append(
            f"{len(brought)} of {many} texts came with their prompt, which was not put there again: "
            f"{name_inputs(brought)}"
        )
    return warnings


def _text_of(item: object, index: int) -> str:
    """The text of one of Cohere's inputs; several parts of text are lines of it."""
    parts = item.get("content") if isinstance(item, dict) else None
    if not isinstance(parts, list) or not parts:
        raise InvalidInput(f'`inputs`: input {index} has no `content` such as [{{"type": "text", "text": "…"}}]')
    lines: list[str] = []
    for part in parts:
        given = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if given != "text":
            raise InvalidInput(
                f"`inputs`: input {index} has content of type {str(given)[:40]!r}; this model reads text alone"
            )
        if not isinstance(text, str):
            raise InvalidInput(f"`inputs`: `text` of input {index} must be a text, not {kind_of(text)}")
        lines.append(text)
    return "\n".join(lines)
