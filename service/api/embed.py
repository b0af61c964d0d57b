"""Texts to vectors by the routes of Text Embeddings Inference, with E5's roles added: /embed, / and /invocations.

Contract: huggingface/text-embeddings-inference, router/src/http/{server,types}.rs, version 1.9.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict, Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response

from service.api.answering import answer, respond
from service.api.binary import BINARY, BINARY_HEADERS, binary_type, respond_binary
from service.api.encoding import Dtype, Format, convert, json_list, scale_of
from service.api.facade import NUMBERS, array_of
from service.api.options import ROLE_IN_ADDRESS, Inputs, Options, ask_of
from service.api.reading import checked, embedder_of, parse_inputs_in_turns, read, read_json
from service.api.schema import schema_of
from service.api.similarity import SimilarityBody, answer_similarity
from service.api.tei import TEI
from service.errors import InvalidInput

FACADE = TEI
router = APIRouter()


class EmbedBody(Options):
    """POST /embed."""

    model_config = ConfigDict(json_schema_extra={"required": ["inputs"]})
    inputs: Inputs
    normalize: bool = True
    dimensions: int | None = None
    encoding_format: Format | None = Field(
        default="float", description="base64: of each row's bytes, little-endian, in the output_dtype"
    )
    output_dtype: Dtype | None = Field(
        default="float32",
        description="int8: round(component × scale), the scale in the header x-me5-scale and in /info; "
        "for vectors of length one",
    )


EXAMPLES: dict[str, JsonValue] = {
    "a query": {"inputs": "how tall is the Fernsehturm?", "input_type": "query"},
    "passages": {
        "inputs": ["Der Fernsehturm ist 368 Meter hoch.", "東京の人口は約千四百万人です。"],
        "prompt_name": "passage",
        "truncate": True,
        "truncation_direction": "right",
    },
    "fewer dimensions": {"inputs": ["a text"], "dimensions": 64, "normalize": True},
    "bytes in base64": {"inputs": ["a text"], "encoding_format": "base64", "output_dtype": "float16"},
}
_COMPARED: dict[str, JsonValue] = {
    "sentence similarity": {
        "inputs": {"source_sentence": "how tall is it?", "sentences": ["It is 368 metres tall.", "Tea turns bitter."]}
    }
}
_ROW = {"oneOf": [NUMBERS, {"type": "string", "contentEncoding": "base64"}]}
_HEADERS: dict[str, object] = {
    "x-me5-scale": {"description": "int8 only: divide by it to get the components", "schema": {"type": "number"}},
    **BINARY_HEADERS,
}
_VECTORS = [[0.0208, -0.0345, 0.0513]]


@router.post(
    "/embed",
    openapi_extra=schema_of(EmbedBody, examples=EXAMPLES, parameters=[ROLE_IN_ADDRESS]),
    responses=TEI.responses(
        "The vectors, in the order of the inputs.", array_of(_ROW), _VECTORS, headers=_HEADERS, binary=BINARY
    ),
    summary="Texts to vectors",
)
async def embed(request: Request) -> Response:
    """A list of vectors, one per input, in order; always a list of lists, or of base64 texts.

    With `accept: application/octet-stream` the body is the vectors alone, row by row, little-endian; with
    `accept: application/x-npy` it is a .npy file.
    """
    return await _embed(request, await read(request, EmbedBody))


_EITHER: dict[str, Any] = {
    "openapi_extra": schema_of(
        EmbedBody, SimilarityBody, examples={**EXAMPLES, **_COMPARED}, parameters=[ROLE_IN_ADDRESS]
    ),
    "responses": TEI.responses(
        "The vectors, in the order of the inputs; or the cosines, in the order of the sentences.",
        array_of({"anyOf": [_ROW, {"type": "number"}]}),
        _VECTORS,
        headers=_HEADERS,
        binary=BINARY,
    ),
}


@router.post("/", summary="The same as /embed; or as /similarity, for a source sentence and others", **_EITHER)
@router.post("/invocations", summary="The same as /, for SageMaker", **_EITHER)
async def embed_or_compare(request: Request) -> Response:
    """What /embed answers; and what /similarity does, for a body that is one of its own.

    Hugging Face's clients send both to the one address they are given.
    """
    value = await read_json(request)
    if isinstance(value, dict) and isinstance(value.get("inputs"), dict):
        return await answer_similarity(request, checked(request, value, SimilarityBody))
    return await _embed(request, checked(request, value, EmbedBody))


async def _embed(request: Request, body: EmbedBody) -> Response:
    dtype = body.output_dtype or "float32"
    if dtype == "int8" and not body.normalize:
        raise InvalidInput(
            "`output_dtype` int8 is for vectors of length one; leave `normalize` out, or ask for float16 or float32"
        )
    inputs = await parse_inputs_in_turns(request, body.inputs, "inputs")
    found = await answer(request, ask_of(request, inputs, body, body.normalize, body.dimensions))
    scale = scale_of(embedder_of(request).model.golden, body.dimensions) if dtype == "int8" else 1.0
    vectors = convert(found.vectors, dtype, scale)
    extra = [(b"x-me5-scale", repr(scale).encode("ascii"))] if dtype == "int8" else []
    if (media_type := binary_type(request)) is not None:
        return await respond_binary(request, found, vectors, dtype, media_type, extra)
    return await respond(request, found, json_list(vectors, body.encoding_format or "float"), extra=extra)
