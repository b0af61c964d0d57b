"""Which requests need a key, and where a request has its own."""

from __future__ import annotations

import time

from starlette.types import Scope

from service.api.headers import headers_in
from service.callers import Caller, Callers
from service.errors import Unauthorized

# Probes, which supervisors send without a key, and pages, whose scripts then ask with one. Everything else is closed,
# whatever routes there will be.
OPEN = frozenset({"/", "/livez", "/readyz", "/health", "/ping", "/openapi.json", "/docs", "/playground"})
OPEN_BELOW = ("/swagger/", "/page/")
METRICS = "/metrics"

_CALLER = "me5_caller"


def caller_of(scope: Scope) -> Caller | None:
    """Whose request it is, where requests need keys."""
    found: Caller | None = scope.get(_CALLER)
    return found


class Guard:
    """Lets requests in that need no key or have a valid one.

    metrics_open: whether /metrics needs none. It says what keys are called and what they use, but nothing secret.
    """

    def __init__(self, callers: Callers, *, metrics_open: bool) -> None:
        self.callers = callers
        self._open = OPEN | {METRICS} if metrics_open else OPEN

    def refusal(self, scope: Scope) -> Unauthorized | None:
        """Why the request is not let in; or None, and its caller is where caller_of finds it."""
        if self._is_open(scope["method"], scope["path"]):
            return None
        try:
            scope[_CALLER] = self.callers.identify(secret_of(scope), time.time())
        except Unauthorized as error:
            return error
        return None

    def _is_open(self, method: str, path: str) -> bool:
        # A browser asks before its request, and can't send a key with that.
        if method == "OPTIONS":
            return True
        return method in ("GET", "HEAD") and (path in self._open or path.startswith(OPEN_BELOW))


def secret_of(scope: Scope) -> bytes | None:
    """The key a request gives: `Authorization: Bearer KEY`, else x-api-key, else api-key as Azure's clients send it."""
    headers = headers_in(scope)
    scheme, _, rest = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and rest.strip():
        return rest.strip()
    return headers.get(b"x-api-key") or headers.get(b"api-key") or None
