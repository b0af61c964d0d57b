"""What the scheduler keeps count of: requests, their texts, and how fast a lane drains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.batching import Lane
from service.engine import EngineHost
from service.errors import Me5Error
from service.metrics import Metrics

if TYPE_CHECKING:
    from service.tracing import RequestTrace

# How fast the drain rate follows the newest batch; twenty batches make a new average.
RATE_WEIGHT = 0.05
# An engine that has just opened prepares itself for each shape it meets: its first batches take three times as long.
SETTLED_BATCHES = 20


@dataclass(eq=False, slots=True)
class Job:
    """One request's texts on their way to vectors.

    client: whose request it is, for fairness.   vectors: float32[N, D], filled row by row.   unit: whether they are
    scaled to length one.   starts: None; or, where token states are wanted and `vectors` is float32[tokens, H], in
    which of its rows those of each text begin.   deadline: on the monotonic clock.   done: resolves once every row is
    there, or fails with the first error.
    """

    lane: Lane
    client: str
    tokens: int
    deadline: float
    unit: bool
    vectors: NDArray[np.float32]
    done: asyncio.Future[None]
    remaining: int
    queue_s: float = 0.0
    engine_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    trace: RequestTrace | None = None
    starts: NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        """N, the number of texts."""
        return len(self.vectors if self.starts is None else self.starts)

    def put(self, row: int, found: NDArray[np.float32]) -> None:
        """What the engine gave for a text: its vector [D], or its token states [n, H]."""
        if self.starts is None:
            self.vectors[row] = found
        else:
            self.vectors[self.starts[row] : self.starts[row] + len(found)] = found

    def fail(self, error: Me5Error) -> None:
        """Answer the request with this error, if it is not answered yet."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(eq=False, slots=True)
class Pending:
    """One text of a job. ids: int32[n].   turn: its place in the queue, set there."""

    ids: NDArray[np.int32]
    job: Job
    row: int
    arrived: float
    turn: float = 0.0
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.ids)


# What the engine gave for a batch: a vector a text; or, where one of them wants its token states, a list by text.
Found = NDArray[np.float32] | list[NDArray[np.float32]]


def finite_rows(found: Found) -> list[bool]:
    """For each text whether all of its numbers are finite."""
    if isinstance(found, list):
        return [bool(np.isfinite(row).all()) for row in found]
    finite: list[bool] = np.asarray(np.isfinite(found).all(axis=1)).tolist()
    return finite


# Around the time of a batch on its host, from a moment on the monotonic clock: gives its `traceparent`, if it has one.
TraceBatch = Callable[[EngineHost, Lane, Sequence[Pending], float], AbstractAsyncContextManager[str | None]]
_UNTRACED: AbstractAsyncContextManager[None] = nullcontext()


def untraced(*_: object) -> AbstractAsyncContextManager[None]:
    """The TraceBatch of a gateway without tracing."""
    return _UNTRACED


class DrainRate:
    """Tokens a second that leave a lane while something waits in it."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self._batches = 0
        self._tokens = self._seconds = 0.0
        self._since = 0.0

    def begin(self, now: float) -> None:
        """The lane has work from now on."""
        self._since = now

    def add(self, tokens: int, now: float) -> None:
        """So many tokens are done."""
        self._batches += 1
        self._tokens += RATE_WEIGHT * (tokens - self._tokens)
        self._seconds += RATE_WEIGHT * (now - self._since - self._seconds)
        self._since = now
        self.tokens_per_s = self._tokens / max(self._seconds, 1e-6)

    @property
    def is_settled(self) -> bool:
        """Whether a request may be refused by it."""
        return self._batches >= SETTLED_BATCHES


class LaneMetrics:
    """One lane's children of the collectors, looked up once."""

    def __init__(self, metrics: Metrics, lane: Lane) -> None:
        self.queue_requests = metrics.queue_requests.labels(lane)
        self.queue_tokens = metrics.queue_tokens.labels(lane)
        self.queue_duration_s = metrics.queue_duration_s.labels(lane)
        self.engine_duration_s = metrics.engine_duration_s.labels(lane)
        self.batch_size = metrics.batch_size.labels(lane)
        self.batch_tokens = metrics.batch_tokens.labels(lane)
        self.batch_padding_ratio = metrics.batch_padding_ratio.labels(lane)
