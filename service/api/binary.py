"""Vectors as bytes in place of JSON, where the client's Accept header asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from service.api.answering import respond
from service.api.encoding import Dtype, Vectors, npy, raw
from service.api.facade import JSON
from service.api.reading import header_of
from service.asking import Answer

OCTETS = "application/octet-stream"
NPY = "application/x-npy"

_BYTES = {"schema": {"type": "string", "format": "binary"}}
# For OpenAPI: a 200 that may be bytes.
BINARY: dict[str, object] = {OCTETS: _BYTES, NPY: _BYTES}
BINARY_HEADERS: dict[str, object] = {
    "x-me5-shape": {"description": "of vectors in bytes: rows,dimensions", "schema": {"type": "string"}},
    "x-me5-dtype": {
        "description": "of vectors in bytes: the components' type, little-endian",
        "schema": {"type": "string", "enum": list(get_args(Dtype))},
    },
}


def binary_type(request: Request) -> str | None:
    """The first media type the client accepts, of those there are, where that is not JSON."""
    for name in (header_of(request, b"accept") or "").split(","):
        media_type = name.partition(";")[0].strip().lower()
        if media_type in (OCTETS, NPY, JSON):
            return None if media_type == JSON else media_type
    return None


async def respond_binary(
    request: Request,
    found: Answer,
    vectors: Vectors,
    dtype: Dtype,
    media_type: str,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> Response:
    """The vectors alone, row by row, little-endian; as a .npy file with its header before them."""
    headers = [*extra, (b"x-me5-shape", b"%d,%d" % vectors.shape), (b"x-me5-dtype", dtype.encode("ascii"))]
    parts = npy(vectors) if media_type == NPY else raw(vectors)
    return await respond(request, found, parts, media_type.encode("ascii"), headers)
