"""TEI's POST /embed_all: the states of every token, before pooling.

Contract: huggingface/text-embeddings-inference, router/src/http/{server,types}.rs, version 1.9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from service.api.answering import Streamed, answer, headers_of, respond
from service.api.encoding import NUMBERS_A_SLICE, json_list
from service.api.facade import NUMBERS, array_of
from service.api.intake import Intake
from service.api.options import ROLE_IN_ADDRESS, Inputs, Options, ask_of
from service.api.reading import parse_inputs_in_turns, read, turns_of
from service.api.schema import schema_of
from service.api.tei import TEI
from service.asking import Answer
from service.errors import InvalidInput

FACADE = TEI
router = APIRouter()

# Of one request: 10,900 tokens of me5_nano, 4,096 of a model with 1024 components.
STATES_BYTES_MAX = 16 * 2**20
# An answer that can't be streamed is there as JSON too, whole: up to 16 bytes a number beside its four.
WHOLE_COPIES = 5


class EmbedAllBody(Options):
    """POST /embed_all."""

    model_config = ConfigDict(json_schema_extra={"required": ["inputs"]})
    inputs: Inputs


@router.post(
    "/embed_all",
    openapi_extra=schema_of(
        EmbedAllBody,
        examples={"a passage": {"inputs": "Tea turns bitter.", "prompt_name": "passage"}},
        parameters=[ROLE_IN_ADDRESS],
    ),
    responses=TEI.responses(
        "A list for each input, with a row for each of its tokens, special tokens included.",
        array_of(array_of(NUMBERS)),
        [[[0.0129, -0.2072, 0.0871], [0.7031, 0.1044, -1.3002]]],
    ),
    summary="Texts to the states of tokens",
)
async def embed_all(request: Request) -> Response:
    """The token states of each text, prompt included: neither pooled nor scaled to length one."""
    body = await read(request, EmbedAllBody)
    if body.instruction_weight is not None:
        raise InvalidInput("`instruction_weight` mixes vectors, not token states; leave it out")
    inputs = await parse_inputs_in_turns(request, body.inputs, "inputs")
    intake: Intake = request.app.state.intake
    # HTTP/1.0 knows no chunks.
    streams = request.scope["http_version"] != "1.0"

    def hold(count: int) -> None:
        limit = STATES_BYTES_MAX if streams else STATES_BYTES_MAX // WHOLE_COPIES
        if count > limit:
            raise InvalidInput(
                f"the token states of these inputs take {count} bytes, the limit is {limit} a request; "
                f"send fewer or shorter texts a request{'' if streams else ', or speak HTTP/1.1'}"
            )
        intake.take_states(request.scope, count if streams else count * WHOLE_COPIES)

    found = await answer(request, replace(ask_of(request, inputs, body), hold_states=hold))
    if found.vectors.size <= NUMBERS_A_SLICE or not streams:
        return await respond(request, found, _pieces(found))
    return Streamed(turns_of(request), _pieces(found), headers_of(request, found))


def _pieces(found: Answer) -> Iterator[bytes]:
    """The states as JSON, in pieces."""
    start, mark = 0, b"["
    for size in found.tokens:
        yield mark
        yield from json_list(found.vectors[start : start + size], "float")
        start, mark = start + size, b","
    yield b"]"
