"""Texts to vectors by the routes of Text Embeddings Inference, with E5's roles added: /embed, /similarity, /info.

Contract: huggingface/text-embeddings-inference, router/src/http/{server,types}.rs, version 1.9.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import numpy as np
from fastapi import APIRouter
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.api.answering import LANE_HEADER, answer, headers_of, json_response, respond, timeout_s_of
from service.api.encoding import Dtype, Format, convert, int8_scale, json_list, raw
from service.api.reading import Body, client_of, embedder_of, header_of, parse_inputs_in_turns, parse_texts, read
from service.api.schema import TEI_ERROR, errors_of, schema_of
from service.asking import Ask
from service.batching import LANES, Lane
from service.embedder import Embedder
from service.errors import InvalidInput
from service.recipe.prompts import INPUT_TYPES, Role, role_of

router = APIRouter()

# /tokenize never cuts, and answers some 300 bytes a token: ten megabytes of text would take gigabytes.
TOKENIZE_CHARS_MAX = 100_000

# TEI's names of precisions.
DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}

INPUTS_SCHEMA = {
    "description": "A text, a list of texts, a list of token ids of this model, or a list of such lists.",
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}},
        {"type": "array", "items": {"type": "integer"}},
    ],
    "examples": [["query: how tall is the Fernsehturm?", "passage: Der Fernsehturm ist 368 Meter hoch."]],
}
# Checked by hand: a validator that reports every one of a million wrong elements is a way to fill the memory.
Inputs = Annotated[object, WithJsonSchema(INPUTS_SCHEMA)]
Texts = Annotated[
    object, WithJsonSchema({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
]
# TEI takes both spellings, and clients send both.
Side = Annotated[Literal["left", "right"], BeforeValidator(lambda value: str(value).lower())]
InputTypeName = Annotated[str, WithJsonSchema({"type": "string", "enum": list(INPUT_TYPES)})]


class Options(Body):
    """What a request may say of how its texts are read. prompt_name is TEI's name for the role."""

    truncate: bool | None = None
    truncation_direction: Side = "right"
    prompt_name: InputTypeName | None = None
    input_type: InputTypeName | None = None
    instruction: str | None = Field(default=None, min_length=1, description="for instruct models, on the query side")


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


class SimilarityInputs(Body):
    """One text, and the texts to compare it with."""

    source_sentence: str
    sentences: Texts


class SimilarityBody(Body):
    """POST /similarity."""

    inputs: SimilarityInputs
    parameters: Options | None = None


EMBED_SCHEMA = schema_of(EmbedBody)
OCTETS = "application/octet-stream"
_ROW_SCHEMAS = [{"type": "array", "items": {"type": "number"}}, {"type": "string", "contentEncoding": "base64"}]
ERROR_RESPONSES = errors_of(TEI_ERROR)
EMBED_RESPONSES: dict[int | str, dict[str, object]] = {
    **ERROR_RESPONSES,
    200: {
        "description": "The vectors, in the order of the inputs.",
        "headers": {
            "x-me5-scale": {
                "description": "int8 only: divide by it to get the components",
                "schema": {"type": "number"},
            },
            "x-me5-shape": {"description": "octet-stream only: rows,dimensions", "schema": {"type": "string"}},
            "x-me5-dtype": {
                "description": "octet-stream only: the components' type",
                "schema": {"type": "string", "enum": list(get_args(Dtype))},
            },
        },
        "content": {
            "application/json": {"schema": {"type": "array", "items": {"oneOf": _ROW_SCHEMAS}}},
            OCTETS: {"schema": {"type": "string", "format": "binary"}},
        },
    },
}


@router.post("/embed", openapi_extra=EMBED_SCHEMA, responses=EMBED_RESPONSES, summary="Texts to vectors")
@router.post("/", openapi_extra=EMBED_SCHEMA, responses=EMBED_RESPONSES, summary="The same as /embed")
async def embed(request: Request) -> Response:
    """A list of vectors, one per input, in order; always a list of lists, or of base64 texts.

    With `accept: application/octet-stream` the body is the vectors alone, row by row, little-endian.
    """
    body = await read(request, EmbedBody)
    dtype = body.output_dtype or "float32"
    if dtype == "int8" and not body.normalize:
        raise InvalidInput(
            "`output_dtype` int8 is for vectors of length one; leave `normalize` out, or ask for float16 or float32"
        )
    inputs = await parse_inputs_in_turns(request, body.inputs, "inputs")
    found = await answer(request, ask_of(request, inputs, body, body.normalize, body.dimensions))
    scale = _int8_scale(embedder_of(request), body.dimensions) if dtype == "int8" else 1.0
    vectors = convert(found.vectors, dtype, scale)
    extra = [(b"x-me5-scale", repr(scale).encode("ascii"))] if dtype == "int8" else []
    if not _wants_bytes(request):
        return await respond(request, found, json_list(vectors, body.encoding_format or "float"), extra=extra)
    extra += [(b"x-me5-shape", b"%d,%d" % vectors.shape), (b"x-me5-dtype", dtype.encode("ascii"))]
    return await respond(request, found, raw(vectors), OCTETS.encode("ascii"), extra)


@router.post(
    "/similarity", openapi_extra=schema_of(SimilarityBody), responses=ERROR_RESPONSES, summary="One text against others"
)
async def similarity(request: Request) -> Response:
    """The cosine of the source sentence with each of the sentences."""
    body = await read(request, SimilarityBody)
    source = parse_texts(body.inputs.source_sentence, "inputs.source_sentence", 1)
    sentences = parse_texts(body.inputs.sentences, "inputs.sentences", embedder_of(request).settings.max_inputs)
    found = await answer(request, ask_of(request, [*source, *sentences], body.parameters or Options()))
    return json_response(found.vectors[1:] @ found.vectors[0], headers_of(request, found))


@router.get("/info", summary="The model and the limits")
async def info(request: Request) -> Response:
    """TEI's fields, then this server's own."""
    embedder = embedder_of(request)
    settings, spec, about = embedder.settings, embedder.model.spec, embedder.about()
    return json_response(
        {
            "model_id": spec.name,
            "model_sha": spec.files.get("model.onnx"),
            # Until the first engine is there, the precision may be "auto".
            "model_dtype": DTYPE_NAMES.get(about["precision"], about["precision"]),
            "served_model_name": spec.name,
            "model_type": {"embedding": {"pooling": "mean"}},
            # Requests are admitted by tokens, not by number; TEI's field has to be a number all the same.
            "max_concurrent_requests": settings.max_queued_tokens,
            "max_input_length": spec.max_tokens,
            "max_batch_tokens": settings.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_inputs,
            "auto_truncate": settings.truncate,
            "tokenization_workers": 2,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "model_version": embedder.model.version,
            "model_source": spec.source,
            "dimension": spec.dimension,
            "output_dtypes": list(get_args(Dtype)),
            "int8_scale": _int8_scale(embedder),
            "weights": spec.weights,
            "engine": about["engine"],
            "precision": about["precision"],
            "device": about["device"],
            "memory_peak_bytes": embedder.memory.total if embedder.memory else None,
            "golden": {"source": about["golden_source"], "cosine": embedder.proof_cosine},
            "default_role": settings.default_role,
            "prompts": {
                "query": spec.prompts.prefix("query"),
                "passage": spec.prompts.prefix("passage"),
                "instruct": spec.prompts.instruct,
            },
            "max_queued_tokens": settings.max_queued_tokens,
            "max_tokenize_characters": TOKENIZE_CHARS_MAX,
            "max_body_bytes": settings.max_body_bytes,
        }
    )


def ask_of(
    request: Request,
    inputs: list[str | list[int]],
    options: Options,
    normalize: bool = True,
    dimensions: int | None = None,
    default_role: Role | None = None,
) -> Ask:
    """The embedder's question from a route's options and the request's headers."""
    input_type = options.prompt_name if options.input_type is None else options.input_type
    if options.input_type and options.prompt_name and role_of(options.input_type) != role_of(options.prompt_name):
        raise InvalidInput(
            f"`input_type` {options.input_type!r} and `prompt_name` {options.prompt_name!r} are different roles; "
            "send one of them"
        )
    return Ask(
        inputs=inputs,
        role=default_role if input_type is None else role_of(input_type),
        input_type=input_type,
        instruction=options.instruction,
        truncate=options.truncate,
        direction=options.truncation_direction,
        normalize=normalize,
        dimensions=dimensions,
        lane=_lane_of(request),
        timeout_s=timeout_s_of(request),
        client=client_of(request),
        trace=request.scope.get("me5_trace"),
    )


def _int8_scale(embedder: Embedder, dimensions: int | None = None) -> float:
    return int8_scale(np.stack([item.vector for item in embedder.model.golden.items]), dimensions)


def _wants_bytes(request: Request) -> bool:
    """Whether the first type the client accepts, of those there are, is plain bytes."""
    for name in (header_of(request, b"accept") or "").split(","):
        media_type = name.partition(";")[0].strip().lower()
        if media_type in (OCTETS, "application/json"):
            return media_type == OCTETS
    return False


def _lane_of(request: Request) -> Lane | None:
    given = header_of(request, LANE_HEADER.encode("ascii"))
    if given is None:
        return None
    for lane in LANES:
        if given == lane:
            return lane
    raise InvalidInput(f"{LANE_HEADER} is {given[:40]!r}; use one of {', '.join(LANES)}")
