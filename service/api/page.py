"""What browsers get: a landing page at `/`, and the playground at `/playground` with its files under `/page/`.

The files lie in service/page/, are sent as they are, and ask nothing of any other server.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.api import ops
from service.api.reading import embedder_of, header_of
from service.api.tei import TEI
from service.embedder import Embedder
from service.errors import NotFound

FACADE = TEI
router = APIRouter()

FOLDER = Path(__file__).resolve().parent.parent / "page"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing of another origin, no script or style in the markup, no frame around it; and no string ever becomes HTML or
# script, whatever is pasted: the pages build elements only.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept, and asked for again each time: an answer of 304 is cheap, and no page ever meets another version's script.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """A file as it is sent.   etag: with its quotes."""

    content: bytes
    media_type: str
    etag: str


@functools.cache
def page_files() -> dict[str, PageFile]:
    """The files of service/page/ by name, read once."""
    return {
        path.name: page_file(path.read_bytes(), MEDIA_TYPES[path.suffix])
        for path in sorted(FOLDER.iterdir())
        if path.suffix in MEDIA_TYPES
    }


def page_file(content: bytes, media_type: str) -> PageFile:
    """The content with its tag, a part of its SHA-256."""
    return PageFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


@router.get(
    "/",
    responses={
        **TEI.errors([503]),
        # No media type is named: TEI's answer has none, and the page is no part of its contract.
        200: {"description": "Ready, and nothing in the body; or a page for those that name text/html in `accept`."},
    },
    response_class=Response,
    summary="The same as /health; a page in a browser",
)
async def root(request: Request) -> Response:
    """TEI's probe, and a landing page for whoever names text/html in `accept`."""
    response = (
        respond(request, landing(request)) if wants_page(header_of(request, b"accept")) else await ops.health(request)
    )
    response.headers["vary"] = "accept"
    return response


@router.get("/playground", include_in_schema=False)
async def playground(request: Request) -> Response:
    """The playground."""
    return respond(request, page_files()["playground.html"])


@router.get("/page/{name}", include_in_schema=False)
async def file(request: Request, name: str) -> Response:
    """A script, style or drawing of the pages."""
    found = page_files().get(name)
    if found is None or name.endswith(".html"):
        raise NotFound(f"no file {name[:80]!r} in /page/; see /playground")
    return respond(request, found)


def wants_page(accept: str | None) -> bool:
    """Whether an Accept header names text/html, and JSON at most as the lesser choice. `*/*` alone is no browser."""
    weights: dict[str, float] = {}
    for part in (accept or "").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights[name] = next((_weight(piece[2:]) for piece in parameters if piece.startswith("q=")), 1.0)
    return weights.get("text/html", 0.0) > weights.get("application/json", 0.0)


def respond(request: Request, found: PageFile) -> Response:
    """The file, or 304 where the client has it."""
    headers = {**HEADERS, "etag": found.etag}
    known = (header_of(request, b"if-none-match") or "").replace("W/", "").split(",")
    if found.etag in (tag.strip() for tag in known):
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers={**headers, "content-type": found.media_type})


def landing(request: Request) -> PageFile:
    """The landing page of this server as it is now."""
    embedder = embedder_of(request)
    values = {
        **_values(embedder),
        "origin": str(request.base_url).rstrip("/"),
        "ready": embedder.not_ready() or "ready",
    }
    text = Template(page_files()["index.html"].content.decode("utf-8")).substitute(
        {name: escape(value) for name, value in values.items()}, routes=_routes(request)
    )
    return page_file(text.encode("utf-8"), MEDIA_TYPES[".html"])


def _values(embedder: Embedder) -> dict[str, str]:
    spec, about = embedder.model.spec, embedder.about()
    return {
        "model": spec.name,
        "model_version": embedder.model.version,
        "dimension": str(spec.dimension),
        "max_tokens": str(spec.max_tokens),
        "query_prompt": spec.prompts.prefix("query") or "none",
        "passage_prompt": spec.prompts.prefix("passage") or "none",
        "engine": f"{about['engine']}, {about['precision']}, on {about['device']}",
        "version": __version__,
    }


def _routes(request: Request) -> str:
    """Every route that the description has, as rows of a table: those that take a body first."""
    app: FastAPI = request.app
    routes = [
        (method.upper(), path, operation["summary"])
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    return "\n".join(
        f'<tr><th scope="row"><code>{method} {escape(path)}</code></th><td>{escape(summary)}</td></tr>'
        for method, path, summary in sorted(routes, key=lambda route: route[0] != "POST")
    )


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
