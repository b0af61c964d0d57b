"""How many bytes of request bodies, and of token states on their way back, the process holds, all requests together."""

from __future__ import annotations

from typing import NoReturn

from starlette.types import Scope

from service.errors import Overloaded
from service.metrics import Metrics

# A body leaves with its answer, and some answer leaves nearly at once; how much is freed then nobody can say.
RETRY_AFTER_S = 1

# Token states stay until their reader has taken the last byte, so they get no more than this share of the limit: the
# rest is for bodies, however slowly others read.
STATES_SHARE = 0.5

_BODY, _STATES = "me5_body_bytes", "me5_states_bytes"


class Intake:
    """Counts each chunk of a body when it arrives, token states when they are asked for, and both out when the request
    is over."""

    def __init__(self, limit_bytes: int, metrics: Metrics) -> None:
        self._limit_bytes = limit_bytes
        self._states_max = int(limit_bytes * STATES_SHARE)
        self._body_bytes = self._states_bytes = 0
        metrics.buffered_bytes.set_function(lambda: self._body_bytes + self._states_bytes)
        self._refused = metrics.rejected_requests.labels("buffered_bytes")

    def take(self, scope: Scope, count: int) -> None:
        """Hold so many bytes of this request's body, or raise Overloaded. A lone request always has room."""
        mine = scope.get(_BODY, 0)
        # States may be more than their share, where one request's alone are.
        held = self._body_bytes + min(self._states_bytes, self._states_max)
        if held > mine and held + count > self._limit_bytes:
            self._refuse(held - mine, self._limit_bytes)
        scope[_BODY] = mine + count
        self._body_bytes += count

    def take_states(self, scope: Scope, count: int) -> None:
        """Hold so many bytes of token states for this request, or raise Overloaded. A lone request always has room."""
        if self._states_bytes and self._states_bytes + count > self._states_max:
            self._refuse(self._states_bytes, self._states_max)
        others = self._body_bytes - scope.get(_BODY, 0) + self._states_bytes
        if others and others + count > self._limit_bytes:
            self._refuse(others, self._limit_bytes)
        scope[_STATES] = scope.get(_STATES, 0) + count
        self._states_bytes += count

    def release(self, scope: Scope) -> None:
        """The request is over."""
        self._body_bytes -= scope.pop(_BODY, 0)
        self._states_bytes -= scope.pop(_STATES, 0)

    def _refuse(self, held: int, limit: int) -> NoReturn:
        self._refused.inc()
        raise Overloaded(
            f"Model is overloaded: {held} bytes of other requests are held, the limit is {limit} "
            f"(of ME5_MAX_BUFFERED_BYTES={self._limit_bytes}); try again in {RETRY_AFTER_S} s",
            retry_after_s=RETRY_AFTER_S,
        )
