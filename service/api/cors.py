"""Cross-origin requests: pages of named origins may ask, and read what is answered.

Contract: the Fetch standard, "CORS protocol". Credentials in its sense, cookies above all, are never allowed: a key is
a header that the page's script sets itself.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.headers import headers_in

METHODS = b"GET, POST, OPTIONS"
# What we read. A page of a named origin may send others too: clients bring their own.
HEADERS = b"authorization, content-type, accept, api-key, x-api-key, x-request-id, x-me5-lane, x-me5-timeout-ms"
# Two hours are the most that browsers keep an answer (Chromium).
MAX_AGE_S = b"7200"
EXPOSED = b", ".join(
    (
        b"retry-after, www-authenticate, x-request-id",
        b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
        b"x-compute-type, x-compute-time, x-compute-characters, x-compute-tokens",
        b"x-total-time, x-tokenization-time, x-queue-time, x-inference-time",
        b"x-me5-role, x-me5-lane, x-me5-truncated, x-me5-truncated-inputs, x-me5-scale, x-me5-shape, x-me5-dtype",
    )
)
_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1024}")


class Cors:
    """Around an application, errors included: what its answers say to a browser, and the answer to a preflight."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self.app = app
        self._origins = frozenset(origin.encode("ascii") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = headers_in(scope)
        origin = headers.get(b"origin", b"")
        # For caches between: the answer differs by origin, also where it has none.
        said = [(b"vary", b"Origin")]
        if origin in self._origins:
            said.append((b"access-control-allow-origin", origin))
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            if origin in self._origins:
                said += _preflight(headers.get(b"access-control-request-headers", b""))
            # Nothing allowed is how a browser is told no, whatever the status.
            await send({"type": "http.response.start", "status": 204, "headers": said})
            await send({"type": "http.response.body", "body": b""})
            return
        if origin in self._origins:
            said.append((b"access-control-expose-headers", EXPOSED))

        async def send_with_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *said]
            await send(message)

        await self.app(scope, receive, send_with_more)


def _preflight(wanted: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", wanted if _NAMES.fullmatch(wanted) else HEADERS),
        (b"access-control-max-age", MAX_AGE_S),
    ]
