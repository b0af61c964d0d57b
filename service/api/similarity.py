"""TEI's POST /similarity: one text against others, with a role for each side.

Contract: huggingface/text-embeddings-inference, router/src/http/{server,types}.rs, version 1.9.
"""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter
from pydantic import Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response

from service.api.answering import answer, headers_of, json_response
from service.api.facade import NUMBERS
from service.api.options import InputTypeName, Options, Texts, ask_of
from service.api.reading import Body, embedder_of, parse_texts, read
from service.api.schema import schema_of
from service.api.tei import TEI
from service.recipe.prompts import role_of

FACADE = TEI
router = APIRouter()


class SimilarityInputs(Body):
    """One text, and the texts to compare it with."""

    source_sentence: str
    sentences: Texts


class SimilarityOptions(Options):
    """The roles of both sides, which TEI has one `prompt_name` for; its own applies to the side that has none."""

    source_type: InputTypeName | None = Field(
        default=None, description="role of the source sentence: query, for a search"
    )
    sentences_type: InputTypeName | None = Field(
        default=None, description="role of the sentences: passage, for a search"
    )


class SimilarityBody(Body):
    """POST /similarity."""

    inputs: SimilarityInputs
    parameters: SimilarityOptions | None = None


_INPUTS: JsonValue = {
    "source_sentence": "how tall is it?",
    "sentences": ["It is 368 metres tall.", "Tea turns bitter."],
}


@router.post(
    "/similarity",
    openapi_extra=schema_of(
        SimilarityBody,
        examples={
            "as TEI has it": {"inputs": _INPUTS, "parameters": {"prompt_name": "query"}},
            "a search": {"inputs": _INPUTS, "parameters": {"source_type": "query", "sentences_type": "passage"}},
        },
    ),
    responses=TEI.responses("The cosines, in the order of the sentences.", NUMBERS, [0.8571, 0.7034]),
    summary="One text against others",
)
async def similarity(request: Request) -> Response:
    """The cosine of the source sentence with each of the sentences."""
    return await answer_similarity(request, await read(request, SimilarityBody))


async def answer_similarity(request: Request, body: SimilarityBody) -> Response:
    """The same for a body that is read already."""
    options = body.parameters or SimilarityOptions()
    source = parse_texts(body.inputs.source_sentence, "inputs.source_sentence", 1)
    sentences = parse_texts(body.inputs.sentences, "inputs.sentences", embedder_of(request).settings.max_inputs)
    one, other = options.source_type, options.sentences_type
    ask = ask_of(request, [*source, *sentences], options)
    if one is not None or other is not None:
        # Two parts of one request, each with its prompt.
        ask = replace(
            ask,
            inputs=[*source],
            role=role_of(one) if one else ask.role,
            input_type=one or ask.input_type,
            also=replace(
                ask,
                inputs=[*sentences],
                role=role_of(other) if other else ask.role,
                input_type=other or ask.input_type,
            ),
        )
    found = await answer(request, ask)
    return json_response(found.vectors[1:] @ found.vectors[0], headers_of(request, found))
