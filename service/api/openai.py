"""OpenAI's POST /v1/embeddings and GET /v1/models, with E5's roles added.

Contract: OpenAI API reference, "Create embeddings", and what the openai package sends (it asks for base64 unless told
otherwise).
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from service.api.answering import answer, json_response, respond
from service.api.binary import BINARY, BINARY_HEADERS, binary_type, respond_binary
from service.api.encoding import convert, openai_list
from service.api.facade import INTEGER, NUMBERS, TEXT, Facade, array_of, object_of
from service.api.intake import Intake
from service.api.options import ROLE_IN_ADDRESS, Inputs, Options, ask_of, role_of_model, split_model_name
from service.api.reading import embedder_of, parse_inputs_in_turns, read, turns_of
from service.api.schema import schema_of
from service.errors import InvalidInput, MalformedRequest, Me5Error, NotFound, name_inputs
from service.foreign_tokens import ForeignTokens


def _error_body(error: Me5Error, status: int) -> dict[str, object]:
    kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}


FACADE = Facade(
    prefix="/v1/",
    error_body=_error_body,
    error_schema=object_of(error=object_of(message=TEXT, type=TEXT, param={"type": "null"}, code=TEXT)),
)
router = APIRouter()


class EmbeddingsBody(Options):
    """POST /v1/embeddings. The fields beyond OpenAI's own are reached by `extra_body` of its client."""

    model_config = ConfigDict(json_schema_extra={"required": ["input"]})
    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = None
    normalize: bool = True


_EMBEDDING = object_of(object=TEXT, embedding={"oneOf": [NUMBERS, TEXT]}, index=INTEGER)
_USAGE = object_of(prompt_tokens=INTEGER, total_tokens=INTEGER)
_MODEL = object_of(id=TEXT, object=TEXT, created=INTEGER, owned_by=TEXT)
_MODEL_EXAMPLE = {"id": "me5_nano", "object": "model", "created": 0, "owned_by": "me5"}
_ROUTE: dict[str, Any] = {
    "openapi_extra": schema_of(
        EmbeddingsBody,
        examples={
            "as OpenAI's client sends it": {"input": ["a text"], "model": "me5_nano", "encoding_format": "base64"},
            "a role by the model's name": {"input": "a text", "model": "me5_nano-passage"},
            "a role by extra_body": {"input": ["a text"], "model": "me5_nano", "input_type": "search_query"},
            "fewer dimensions": {"input": "a text", "model": "me5_nano", "dimensions": 64, "user": "me"},
        },
        parameters=[ROLE_IN_ADDRESS],
    ),
    "responses": FACADE.responses(
        "The vectors, in the order of the inputs.",
        object_of(object=TEXT, data=array_of(_EMBEDDING), model=TEXT, usage=_USAGE),
        {
            "object": "list",
            "data": [{"object": "embedding", "embedding": [0.0208, -0.0345, 0.0513], "index": 0}],
            "model": "me5_nano",
            "usage": {"prompt_tokens": 6, "total_tokens": 6},
        },
        headers=BINARY_HEADERS,
        binary=BINARY,
    ),
}


@router.post("/v1/embeddings", summary="OpenAI's embeddings", **_ROUTE)
@router.post("/embeddings", summary="The same as /v1/embeddings, where Infinity and TEI have it", **_ROUTE)
async def embeddings(request: Request) -> Response:
    """OpenAI's list of embeddings. A `-query` or `-passage` suffix on the model's name sets the role."""
    body = await read(request, EmbeddingsBody)
    embedder = embedder_of(request)
    inputs = await parse_inputs_in_turns(request, body.input, "input")
    if not all(isinstance(item, str) for item in inputs):
        inputs = await _texts_of_ids(request, inputs)
    role = role_of_model(request, body.model or "")
    found = await answer(request, ask_of(request, inputs, body, body.normalize, body.dimensions, default_role=role))
    vectors = convert(found.vectors, "float32")
    if (media_type := binary_type(request)) is not None:
        return await respond_binary(request, found, vectors, "float32", media_type)
    pieces = openai_list(vectors, body.encoding_format or "float", embedder.model.spec.name, sum(found.tokens))
    return await respond(request, found, pieces)


@router.get(
    "/v1/models",
    responses=FACADE.responses(
        "The names.",
        object_of(object=TEXT, data=array_of(_MODEL)),
        {"object": "list", "data": [_MODEL_EXAMPLE]},
        errors=[401],
    ),
    summary="The model served, once per role",
)
async def models(request: Request) -> Response:
    """The served model, and its name with each role's suffix."""
    name = embedder_of(request).model.spec.name
    return json_response({"object": "list", "data": [_card(name + suffix) for suffix in ("", "-query", "-passage")]})


@router.get(
    "/v1/models/{model}",
    responses=FACADE.responses("The name.", _MODEL, _MODEL_EXAMPLE, errors=[401, 404]),
    summary="One model",
)
async def model(request: Request, model: str) -> Response:
    """The served model under any of its names."""
    name, _ = split_model_name(model)
    served = embedder_of(request).model.spec.name
    if name != served:
        raise NotFound(f"no model {model[:80]!r}; this server has {served}, {served}-query and {served}-passage")
    return json_response(_card(model))


async def _texts_of_ids(request: Request, inputs: list[str | list[int]]) -> list[str | list[int]]:
    """Ids of OpenAI's vocabulary as texts, where the operator has said which one clients use."""
    vocabulary: ForeignTokens | None = request.app.state.foreign_tokens
    if vocabulary is None:
        foreign = [index for index, item in enumerate(inputs) if not isinstance(item, str)]
        # LangChain sends ids of OpenAI's own vocabulary by default; embedding them would give nonsense in silence.
        raise MalformedRequest(
            f"`input` holds token ids ({name_inputs(foreign)}), which this model can't tell from another vocabulary's; "
            "send texts (langchain: OpenAIEmbeddings(check_embedding_ctx_length=False)), or this model's own ids to "
            "POST /embed, or let the server read them by ME5_OPENAI_TOKENS"
        )
    intake: Intake = request.app.state.intake
    limit, size = embedder_of(request).settings.max_body_bytes, 0

    def hold(count: int) -> None:
        nonlocal size
        size += count
        if size > limit:
            raise InvalidInput(
                f"the texts of these token ids take more than {limit} bytes, as many as a body may have "
                "(ME5_MAX_BODY_BYTES); send fewer or shorter inputs a request"
            )
        intake.take(request.scope, count)

    parts = await turns_of(request).collect(vocabulary.texts(inputs, hold))
    return [text for part in parts for text in part]


def _card(name: str) -> dict[str, object]:
    # `created` is required by OpenAI's client; a model version has no such moment, so it is the epoch.
    return {"id": name, "object": "model", "created": 0, "owned_by": "me5"}
