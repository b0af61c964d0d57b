"""Any bytes as a request's body: a checked value, or one of our own errors. Run as a program: coverage-guided, endless.

python tests/fuzz_reading.py [-max_total_time=SECONDS]    # needs the package atheris
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence

from gateway_process import MODEL_REPO, SHIPPED_MODEL
from starlette.requests import Request
from starlette.types import Message

from service.api import cohere, ollama
from service.api.embed import EmbedBody
from service.api.embed_all import EmbedAllBody
from service.api.openai import EmbeddingsBody
from service.api.reading import parse_inputs_in_turns, parse_texts, read
from service.api.similarity import SimilarityBody
from service.api.tokenize import DecodeBody, TokenizeBody
from service.app import create_app
from service.errors import Me5Error
from service.settings import Settings

# Small, so that the limits are met often.
MAX_INPUTS = 8
MAX_BODY_BYTES = 200_000


@functools.cache
def _app() -> object:
    return create_app(
        Settings(model=SHIPPED_MODEL, model_repo=MODEL_REPO, max_inputs=MAX_INPUTS, max_body_bytes=MAX_BODY_BYTES)
    )


@functools.cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def request_of(chunks: Sequence[bytes], headers: Sequence[tuple[bytes, bytes]] = ()) -> Request:
    """A request whose body arrives in these pieces."""
    left = list(chunks)

    async def receive() -> Message:
        body = left.pop(0) if left else b""
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    scope = {"type": "http", "app": _app(), "method": "POST", "path": "/embed", "headers": list(headers)}
    return Request(scope, receive)


async def _embed(request: Request) -> None:
    _check_inputs(await parse_inputs_in_turns(request, (await read(request, EmbedBody)).inputs, "inputs"))


async def _openai(request: Request) -> None:
    _check_inputs(await parse_inputs_in_turns(request, (await read(request, EmbeddingsBody)).input, "input"))


async def _similarity(request: Request) -> None:
    body = await read(request, SimilarityBody)
    _check_inputs(parse_texts(body.inputs.sentences, "inputs.sentences", MAX_INPUTS))


async def _tokenize(request: Request) -> None:
    _check_inputs(parse_texts((await read(request, TokenizeBody)).inputs, "inputs", MAX_INPUTS, empty=True))


async def _decode(request: Request) -> None:
    _check_inputs(await parse_inputs_in_turns(request, (await read(request, DecodeBody)).ids, "ids", empty=True))


async def _embed_all(request: Request) -> None:
    _check_inputs(await parse_inputs_in_turns(request, (await read(request, EmbedAllBody)).inputs, "inputs"))


async def _cohere(request: Request) -> None:
    _check_inputs(cohere.texts_of(await read(request, cohere.EmbedBody), MAX_INPUTS))


async def _ollama(request: Request) -> None:
    body = await read(request, ollama.EmbedBody)
    if body.input not in (None, "", []):
        _check_inputs(parse_texts(body.input, "input", MAX_INPUTS))


READERS: dict[str, Callable[[Request], Coroutine[None, None, None]]] = {
    "embed": _embed,
    "openai": _openai,
    "similarity": _similarity,
    "tokenize": _tokenize,
    "decode": _decode,
    "embed_all": _embed_all,
    "cohere": _cohere,
    "ollama": _ollama,
}


def _check_inputs(found: Sequence[str | list[int]]) -> None:
    """What the routes rely on."""
    assert 0 < len(found) <= MAX_INPUTS
    for item in found:
        if isinstance(item, str):
            # Text that has no UTF-8 (half a surrogate pair) is none: the tokenizer can't take it.
            item.encode("utf-8")
        else:
            assert all(type(part) is int for part in item)


def read_or_refuse(route: str, chunks: Sequence[bytes], headers: Sequence[tuple[bytes, bytes]] = ()) -> Me5Error | None:
    """Read a body as this route does: the error that refuses it, or None. Anything else that is raised is a bug."""

    request = request_of(chunks, headers)
    try:
        _runner().run(READERS[route](request))
    except Me5Error as error:
        refused = error
    else:
        return None
    finally:
        # As the app does at the end of a request: it counts the bytes of all bodies that it holds.
        request.app.state.intake.release(request.scope)
    assert 400 <= refused.status < 500, refused
    # It has to leave as UTF-8, and to be read.
    assert 0 < len(refused.message.encode("utf-8")) < 5000, refused.message
    return refused
