"""Ollama's POST /api/embed, the older /api/embeddings, and what its clients ask beside: /api/tags, /api/version.

Contract: ollama/ollama, docs/api.md and api/types.go; what the ollama package 0.6 sends and reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import orjson
from fastapi import APIRouter
from pydantic import Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.api.answering import answer, json_response, respond
from service.api.encoding import convert, json_list
from service.api.facade import Facade, text_field
from service.api.options import Options, Texts, ask_of, role_of_model
from service.api.reading import embedder_of, parse_texts, read
from service.api.schema import schema_of
from service.asking import Answer
from service.errors import Me5Error
from service.recipe.spec import MODEL_FILE, SPEC_FILE


def _error_body(error: Me5Error, _: int) -> dict[str, object]:
    return {"error": error.message}


FACADE = Facade(prefix="/api/", error_body=_error_body, error_schema=text_field("error"))
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


_NUMBERS = {"type": "array", "items": {"type": "number"}}
_EMBED = {
    "type": "object",
    "required": ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"],
    "properties": {
        "model": {"type": "string"},
        "embeddings": {"type": "array", "items": _NUMBERS},
        "total_duration": {"type": "integer", "description": "nanoseconds"},
        "load_duration": {"type": "integer", "description": "0: the model is loaded before requests are taken"},
        "prompt_eval_count": {"type": "integer", "description": "tokens, prompts included"},
    },
}
_EMBEDDINGS = {"type": "object", "required": ["embedding"], "properties": {"embedding": _NUMBERS}}


def _responses(schema: Mapping[str, object]) -> dict[int | str, dict[str, object]]:
    return {
        **FACADE.responses(),
        200: {"description": "Vectors of length one.", "content": {"application/json": {"schema": schema}}},
    }


@router.post("/api/embed", openapi_extra=schema_of(EmbedBody), responses=_responses(_EMBED), summary="Ollama's vectors")
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
    openapi_extra=schema_of(EmbeddingsBody),
    responses=_responses(_EMBEDDINGS),
    summary="Ollama's older route: one text, one vector",
)
async def embeddings(request: Request) -> Response:
    """The vector of one text; of none an empty one, as Ollama has it."""
    body = await read(request, EmbeddingsBody)
    if not body.prompt:
        return json_response({"embedding": []})
    found = await _answer(request, body, [body.prompt])
    return await respond(request, found, iter([orjson.dumps({"embedding": found.vectors[0].tolist()})]))


@router.get("/api/tags", summary="The model served, once per role, as Ollama lists models")
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


@router.get("/api/version", summary="This gateway's version, where Ollama's clients ask for one")
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
