"""How many bytes of request bodies, and of token states on their way back, the process holds, all requests together."""

from __future__ import annotations

from starlette.types import Scope

from service.errors import Overloaded
from service.metrics import Metrics

# A body leaves with its answer, and some answer leaves nearly at once; how much is freed then nobody can say.
RETRY_AFTER_S = 1

_HELD = "me5_held_bytes"


class Intake:
    """Counts each chunk of a body when it arrives, and all of them out when the request is over."""

    def __init__(self, limit_bytes: int, metrics: Metrics) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        metrics.buffered_bytes.set_function(lambda: self._held_bytes)
        self._refused = metrics.rejected_requests.labels("buffered_bytes")

    def take(self, scope: Scope, count: int) -> None:
        """Hold so many bytes for this request, or raise Overloaded. A lone request always has room."""
        mine = scope.get(_HELD, 0)
        if self._held_bytes > mine and self._held_bytes + count > self._limit_bytes:
            self._refused.inc()
            raise Overloaded(
                f"Model is overloaded: {self._held_bytes} bytes of other requests are held, the limit is "
                f"{self._limit_bytes} (ME5_MAX_BUFFERED_BYTES); try again in {RETRY_AFTER_S} s",
                retry_after_s=RETRY_AFTER_S,
            )
        scope[_HELD] = mine + count
        self._held_bytes += count

    def release(self, scope: Scope) -> None:
        """The request is over."""
        if count := scope.pop(_HELD, 0):
            self._held_bytes -= count
