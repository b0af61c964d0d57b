"""The loop between requests and the engine: takes batches, runs them in a thread, hands out vectors and errors.

Everything but `_compute` and `_replace_engine` runs on the event loop, so there is no lock.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.batching import LANES, WINDOW, Lane, Limits, choose_lane, take_batch
from service.engine import Engine, vectors_of
from service.engine_thread import EngineThread
from service.errors import DeadlineExceeded, EngineFailed, EngineLost, Me5Error, ShuttingDown
from service.metrics import Metrics
from service.recipe.pooling import l2_normalize
from service.recipe.tokens import pad

log = logging.getLogger("me5.scheduler")

State = Literal["starting", "ready", "reopening", "hung", "stopped"]

REOPEN_PAUSE_MAX_S = 30.0
# A model of two gigabytes is read, compiled and proved in far less.
OPEN_TIMEOUT_S = 300.0
# How long the end waits for a batch that nobody needs any more.
STOP_TIMEOUT_S = 5.0
# How fast the drain rate follows the newest batch; ten batches make a new average.
RATE_WEIGHT = 0.1


@dataclass(eq=False, slots=True)
class Job:
    """One request's texts on their way to vectors.

    vectors: float32[N, D], filled row by row.   unit: whether they are scaled to length one.
    deadline: on the monotonic clock.   done: resolves once every row is there, or fails with the first error.
    """

    lane: Lane
    tokens: int
    deadline: float
    unit: bool
    vectors: NDArray[np.float32]
    done: asyncio.Future[None]
    remaining: int
    queue_s: float = 0.0
    engine_s: float = 0.0
    timer: asyncio.TimerHandle | None = None

    def fail(self, error: Me5Error) -> None:
        """Answer the request with this error, if it is not answered yet."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(eq=False, slots=True)
class Pending:
    """One text of a job. ids: int32[n]."""

    ids: NDArray[np.int32]
    job: Job
    row: int
    arrived: float
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.ids)


class Scheduler:
    """Feeds one engine, keeps count of what waits, reopens an engine that fails and gives up one that hangs."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        *,
        limits: Limits,
        pad_id: int,
        engine_timeout_s: float,
        engine_failures: int,
        metrics: Metrics,
        on_hang: Callable[[], None],
    ) -> None:
        self.limits = limits
        self.state: State = "starting"
        self.tokens_per_s = 0.0
        # Tokens of the requests that have no answer yet, the running batch included, and of those being tokenised.
        self.queued_tokens: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._open = open_engine
        self._pad_id = pad_id
        self._engine_timeout_s = engine_timeout_s
        self._engine_failures = engine_failures
        self._metrics = metrics
        self._on_hang = on_hang
        self._lanes: dict[Lane, list[Pending]] = {lane: [] for lane in LANES}
        self._jobs: set[Job] = set()
        self._wake = asyncio.Event()
        self._batches_since_bulk = 0
        # Whether texts of answered requests lie in the queue.
        self._stale = False
        self._failures = 0
        # What the last try to reopen the engine ended with.
        self._closed_by: str | None = None
        self._thread = EngineThread()
        self._engine: Engine | None = None
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether the engine computes, or hangs."""
        return self._thread.busy

    def start(self, engine: Engine) -> None:
        """Begin to compute with an open engine, or go on with another one. Whether it serves is the caller's to say."""
        self._engine = engine
        self._failures = 0
        if self._loop_task is not None:
            return
        self._loop_task = asyncio.create_task(self._serve(), name="scheduler")
        self._loop_task.add_done_callback(self._loop_ended)

    def submit(self, job: Job, rows: list[NDArray[np.int32]]) -> None:
        """Queue the texts of a job. Raises EngineLost or ShuttingDown where nothing would answer it soon."""
        if self.state == "stopped":
            self._metrics.rejected_requests.labels("shutting_down").inc()
            raise ShuttingDown("the server is shutting down; send the request to another one, or again later")
        if self.state == "hung":
            self._metrics.rejected_requests.labels("engine_lost").inc()
            raise EngineLost("the engine hangs, this process is about to be restarted; send the request again")
        if self._closed_by is not None:
            self._metrics.rejected_requests.labels("engine_lost").inc()
            raise EngineLost(f"the engine failed and can't be reopened yet ({self._closed_by}); send the request again")
        now = time.monotonic()
        self._jobs.add(job)
        self.queued_tokens[job.lane] += job.tokens
        job.done.add_done_callback(lambda _: self._forget(job))
        # Not call_at: the loop's clock need not be the monotonic one.
        job.timer = asyncio.get_running_loop().call_later(job.deadline - now, self._expire, job)
        self._lanes[job.lane].extend(Pending(ids, job, row, now) for row, ids in enumerate(rows))
        self._metrics.queue_requests.labels(job.lane).inc()
        self._metrics.queue_tokens.labels(job.lane).inc(job.tokens)
        self._wake.set()

    async def stop(self) -> None:
        """Refuse what still waits, and leave the engine to its thread."""
        self.refuse_all()
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait({self._loop_task})
        await asyncio.to_thread(self._thread.close, 0.0 if self._hung else STOP_TIMEOUT_S)

    def refuse_all(self) -> None:
        """Answer what still waits with ShuttingDown, and everything that comes."""
        self.state = "hung" if self._hung else "stopped"
        self._metrics.rejected_requests.labels("shutting_down").inc(len(self._jobs))
        self._fail_all(ShuttingDown("the server is shutting down; send the request to another one, or again later"))

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("the scheduler's loop ended; giving this process up", exc_info=task.exception())
            self._give_up()

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        self._stale = self._stale or job.remaining > 0
        self.queued_tokens[job.lane] -= job.tokens
        if job.timer is not None:
            job.timer.cancel()
        self._metrics.queue_requests.labels(job.lane).dec()
        self._metrics.queue_tokens.labels(job.lane).dec(job.tokens)
        if job.done.cancelled():
            self._metrics.rejected_requests.labels("abandoned").inc()

    def _expire(self, job: Job) -> None:
        if not job.done.done():
            self._metrics.rejected_requests.labels("deadline").inc()
            job.fail(DeadlineExceeded(waiting=job.remaining, total=len(job.vectors)))

    def _fail_all(self, error: Me5Error) -> None:
        for waiting in self._lanes.values():
            waiting.clear()
        for job in list(self._jobs):
            job.fail(error)

    def _take(self) -> list[Pending]:
        # Answered, abandoned and expired texts leave before they cost anything.
        if self._stale:
            self._stale = False
            for lane, waiting in self._lanes.items():
                self._lanes[lane] = [pending for pending in waiting if not pending.job.done.done()]
        lane_now = choose_lane(bool(self._lanes["interactive"]), bool(self._lanes["bulk"]), self._batches_since_bulk)
        if lane_now is None:
            return []
        self._batches_since_bulk = 0 if lane_now == "bulk" else self._batches_since_bulk + 1
        waiting = self._lanes[lane_now]
        batch = take_batch(waiting, self.limits)
        taken = set(map(id, batch))
        # Only the window was looked at: the rest of a long queue is moved, not walked.
        waiting[:WINDOW] = [pending for pending in waiting[:WINDOW] if id(pending) not in taken]
        return batch

    async def _serve(self) -> None:
        while True:
            batch = self._take()
            if batch:
                await self._run(batch)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _run(self, batch: list[Pending]) -> None:
        started = time.monotonic()
        work = self._thread.submit(functools.partial(self._compute, batch))
        done, _ = await asyncio.wait({work}, timeout=self._engine_timeout_s)
        if not done:
            log.critical("the engine did not finish a batch in %g s; giving this process up", self._engine_timeout_s)
            self._give_up()
            return
        spent_s = time.monotonic() - started
        error = work.exception()
        if error is None:
            self._failures = 0
            self._hand_out(batch, work.result(), started, spent_s)
            return
        self._failures += 1
        log.error("batch of %d texts failed (%d in a row): %r", len(batch), self._failures, error)
        # Its own words may name files of the server: they are for the operator, in the log and at start.
        how = "the server's log says how" if self.state == "ready" else str(error)
        for pending in batch:
            pending.job.fail(EngineFailed(f"the engine failed on this request's batch: {how}"))
        # While starting, another engine may be tried; that is not this loop's to decide.
        if self._failures >= self._engine_failures and self.state == "ready":
            await self._reopen()

    def _compute(self, batch: list[Pending]) -> NDArray[np.float32]:
        """In the engine's thread: pad, run, pool. Returns vectors [B, D]."""
        assert self._engine is not None
        tokens = pad([pending.ids for pending in batch], self._pad_id)
        unit = all(pending.job.unit for pending in batch)
        vectors = vectors_of(self._engine.run(tokens, unit=unit), tokens, unit=unit)
        wanted = (len(batch), batch[0].job.vectors.shape[1])
        if vectors.shape != wanted:
            raise EngineFailed(f"the engine gave an array of shape {vectors.shape}, wanted {wanted}")
        if not unit:
            scaled = [index for index, pending in enumerate(batch) if pending.job.unit]
            vectors[scaled] = l2_normalize(vectors[scaled])
        return vectors

    def _hand_out(self, batch: list[Pending], vectors: NDArray[np.float32], started: float, spent_s: float) -> None:
        finite = np.asarray(np.isfinite(vectors).all(axis=1))
        for index, pending in enumerate(batch):
            job = pending.job
            if not finite[index]:
                job.fail(EngineFailed(f"the engine gave a vector that is not finite for input {pending.row}"))
            if job.done.done():
                continue
            job.vectors[pending.row] = vectors[index]
            job.queue_s += started - pending.arrived
            job.engine_s += spent_s
            job.remaining -= 1
            if job.remaining == 0:
                job.done.set_result(None)
        self._measure(batch, started, spent_s)

    def _measure(self, batch: list[Pending], started: float, spent_s: float) -> None:
        lane, metrics = batch[0].job.lane, self._metrics
        tokens = sum(pending.length for pending in batch)
        area = max(pending.length for pending in batch) * len(batch)
        rate = tokens / max(spent_s, 1e-6)
        self.tokens_per_s += (rate - self.tokens_per_s) * (RATE_WEIGHT if self.tokens_per_s else 1.0)
        metrics.engine_duration_s.labels(lane).observe(spent_s)
        metrics.batch_size.labels(lane).observe(len(batch))
        metrics.batch_tokens.labels(lane).observe(tokens)
        metrics.batch_padding_ratio.labels(lane).observe(1 - tokens / area)
        queue_duration = metrics.queue_duration_s.labels(lane)
        for pending in batch:
            queue_duration.observe(started - pending.arrived)

    @property
    def _hung(self) -> bool:
        return self.state == "hung"

    def _give_up(self) -> None:
        self.state = "hung"
        self._metrics.rejected_requests.labels("engine_lost").inc(len(self._jobs))
        self._fail_all(EngineLost("the engine hangs, this process is about to be restarted; send the request again"))
        self._on_hang()

    async def _reopen(self) -> None:
        """Replace an engine that failed again and again; red readiness, and 503 for all that wait, until it works."""
        self.state = "reopening"
        pause_s = 1.0
        while True:
            log.warning("reopening the engine after %d failed batches", self._failures)
            work = self._thread.submit(self._replace_engine)
            done, _ = await asyncio.wait({work}, timeout=OPEN_TIMEOUT_S)
            if not done:
                log.critical("the engine did not open in %g s; giving this process up", OPEN_TIMEOUT_S)
                self._give_up()
                return
            error = work.exception()
            if error is None:
                self._closed_by = None
                self._failures = 0
                self._metrics.engine_restarts.inc()
                if self.state == "reopening":
                    self.state = "ready"
                return
            # Whatever an engine raises: the process stays up, says so, and tries again.
            log.error("the engine can't be reopened, next try in %g s: %r", pause_s, error)
            self._closed_by = type(error).__name__
            self._metrics.rejected_requests.labels("engine_lost").inc(len(self._jobs))
            self._fail_all(EngineLost("the engine failed and can't be reopened yet; send the request again"))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, REOPEN_PAUSE_MAX_S)

    def _replace_engine(self) -> None:
        """In the engine's thread: close what failed, open another."""
        old, self._engine = self._engine, None
        if old is not None:
            try:
                old.close()
            except Exception as error:  # it failed before; that it fails to close must not keep the next one away
                log.warning("the failed engine can't be closed: %r", error)
        self._engine = self._open()
