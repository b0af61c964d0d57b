"""Ollama's POST /api/embed, the older /api/embeddings, and what its clients ask beside: /api/tags, /api/version.

Contract: ollama/ollama, docs/api.md and api/types.go; what the ollama package 0.6 sends and reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import orjson
from fastapi import APIRouter
from pydantic import Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.api.answering import answer, json_response, respond
from service.api.encoding import convert, json_list
from service.api.facade import INTEGER, NUMBERS, TEXT, Facade, array_of, object_of
from service.api.options import Options, Texts, ask_of, role_of_model
from service.api.reading import embedder_of, parse_texts, read
from service.api.schema import schema_of
from service.asking import Answer
from service.errors import Me5Error
from service.recipe.spec import MODEL_FILE, SPEC_FILE


def _error_body(error: Me5Error, _: int) -> dict[str, object]:
    return {"error": error.message}


FACADE = Facade(prefix="/api/", error_body=_error_body, error_schema=object_of(error=TEXT))
router = APIRouter()

TAG = ":latest"


class ModelBody(Options):
    """What both routes take. The model's suffix sets the role: me5_nano-passage, me5_nano-passage:latest."""

    model: str | None = None
    dimensions: int | None = None
    options: dict[str, JsonValue] | None = Field(default=None, description="ignored: of generating models")
    keep_alive: str | float | None = Field(default=None, description="ignored: the model stays loaded")


class EmbedBody(ModelBody):
    """POST /api/embed."""

    input: Texts | None = Field(default=None, description="nothing, to load a model: answered with no vectors")


class EmbeddingsBody(ModelBody):
    """POST /api/embeddings."""

    prompt: str | None = None


_EMBED = object_of(
    model=TEXT,
    embeddings=array_of(NUMBERS),
    total_duration={"type": "integer", "description": "nanoseconds"},
    load_duration={"type": "integer", "description": "0: the model is loaded before requests are taken"},
    prompt_eval_count={"type": "integer", "description": "tokens, prompts included"},
)


@router.post(
    "/api/embed",
    openapi_extra=schema_of(
        EmbedBody,
        examples={
            "passages": {"model": "me5_nano-passage", "input": ["Tea turns bitter.", "It is 368 metres tall."]},
            "a query": {"model": "me5_nano-query:latest", "input": "how tall is it?", "truncate": True},
            "to load a model": {"model": "me5_nano", "keep_alive": "5m"},
        },
    ),
    responses=FACADE.responses(
        "Vectors of length one, in the order of the texts.",
        _EMBED,
        {
            "model": "me5_nano-query:latest",
            "embeddings": [[0.0208, -0.0345, 0.0513]],
            "total_duration": 5171621,
            "load_duration": 0,
            "prompt_eval_count": 9,
        },
    ),
    summary="Ollama's vectors",
)
async def embed(request: Request) -> Response:
    """A vector for each text."""
    body = await read(request, EmbedBody)
    name = body.model or ""
    if body.input in (None, "", []):
        # Ollama's way of asking for a model to be loaded.
        return json_response(_embed_fields(request, name, 0) | {"embeddings": []})
    texts = parse_texts(body.input, "input", embedder_of(request).settings.max_inputs)
    found = await _answer(request, body, texts)

    def pieces() -> Iterator[bytes]:
        yield b'{"embeddings":'
        yield from json_list(convert(found.vectors, "float32"), "float")
        yield b"," + orjson.dumps(_embed_fields(request, name, sum(found.tokens)))[1:]

    return await respond(request, found, pieces())


@router.post(
    "/api/embeddings",
    openapi_extra=schema_of(EmbeddingsBody, examples={"a text": {"model": "me5_nano", "prompt": "how tall is it?"}}),
    responses=FACADE.responses(
        "A vector of length one.", object_of(embedding=NUMBERS), {"embedding": [0.0208, -0.0345, 0.0513]}
    ),
    summary="Ollama's older route: one text, one vector",
)
async def embeddings(request: Request) -> Response:
    """The vector of one text; of none an empty one, as Ollama has it."""
    body = await read(request, EmbeddingsBody)
    if not body.prompt:
        return json_response({"embedding": []})
    found = await _answer(request, body, [body.prompt])
    return await respond(request, found, iter([orjson.dumps({"embedding": found.vectors[0].tolist()})]))


_DETAILS = object_of(
    parent_model=TEXT,
    format=TEXT,
    family=TEXT,
    families=array_of(TEXT),
    parameter_size=TEXT,
    quantization_level=TEXT,
)
_TAG = object_of(name=TEXT, model=TEXT, modified_at=TEXT, size=INTEGER, digest=TEXT, details=_DETAILS)


@router.get(
    "/api/tags",
    responses=FACADE.responses(
        "The names.",
        object_of(models=array_of(_TAG)),
        {
            "models": [
                {
                    "name": "me5_nano:latest",
                    "model": "me5_nano:latest",
                    "modified_at": "2026-11-28T17:06:17.772651+00:00",
                    "size": 32200219,
                    "digest": "95eeb5315a5c1f0acfdc6ec038fbc4b0d26bab8771ce731cd0d074fe01ea227f",
                    "details": {
                        "parent_model": "",
                        "format": "onnx",
                        "family": "multilingual-e5",
                        "families": ["multilingual-e5"],
                        "parameter_size": "",
                        "quantization_level": "int8",
                    },
                }
            ]
        },
        errors=(),
    ),
    summary="The model served, once per role, as Ollama lists models",
)
async def tags(request: Request) -> Response:
    """The served model, and its name with each role's suffix."""
    model = embedder_of(request).model
    changed = datetime.fromtimestamp((model.folder / SPEC_FILE).stat().st_mtime, UTC).isoformat()
    described = {
        "modified_at": changed,
        "size": sum((model.folder / name).stat().st_size for name in model.spec.files),
        "digest": model.spec.files[MODEL_FILE],
        "details": {
            "parent_model": "",
            "format": "onnx",
            "family": "multilingual-e5",
            "families": ["multilingual-e5"],
            "parameter_size": "",
            "quantization_level": model.spec.weights,
        },
    }
    names = [model.spec.name + suffix + TAG for suffix in ("", "-query", "-passage")]
    return json_response({"models": [{"name": name, "model": name, **described} for name in names]})


@router.get(
    "/api/version",
    responses=FACADE.responses("The version.", object_of(version=TEXT), {"version": "0.1.0"}, errors=()),
    summary="This gateway's version, where Ollama's clients ask for one",
)
async def version() -> Response:
    """Of this gateway, not of an Ollama."""
    return json_response({"version": __version__})


async def _answer(request: Request, body: ModelBody, texts: list[str]) -> Answer:
    role = role_of_model(request, (body.model or "").removesuffix(TAG))
    return await answer(request, ask_of(request, [*texts], body, dimensions=body.dimensions, default_role=role))


def _embed_fields(request: Request, model: str, tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "total_duration": round((time.monotonic() - request.scope["me5_started"]) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }
