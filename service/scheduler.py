"""The loop between requests and the engine: takes batches, has them computed, hands out vectors and errors.

Everything runs on the event loop, so there is no lock.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.batch_calls import ask
from service.batching import LANES, Lane, Limits, lone, next_lane, share
from service.engine import EngineHost
from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    EngineLost,
    Me5Error,
    Overloaded,
    ShuttingDown,
    UpstreamFailed,
)
from service.fair_queue import FairQueue
from service.jobs import DrainRate, Found, Job, LaneMetrics, Pending, TraceBatch, finite_rows, untraced
from service.metrics import Metrics

log = logging.getLogger("me5.scheduler")

State = Literal["starting", "ready", "reopening", "stopped"]

REOPEN_PAUSE_MAX_S = 30.0
EPITAPH_TIMEOUT_S = 1.0


class Scheduler:
    """Feeds one engine host, keeps count of what waits, and replaces a host that fails, hangs or dies."""

    def __init__(
        self,
        reopen: Callable[[], Awaitable[EngineHost]],
        *,
        engine_timeout_s: float,
        engine_failures: int,
        metrics: Metrics,
        reopen_pause_max_s: float = REOPEN_PAUSE_MAX_S,
    ) -> None:
        self.limits = Limits(1)
        self.trace_batch: TraceBatch = untraced
        self.state: State = "starting"
        self.rates = {lane: DrainRate() for lane in LANES}
        # Tokens by client of the requests that have no answer yet, running batches and those being tokenised included.
        self.queued: dict[Lane, Counter[str]] = {lane: Counter() for lane in LANES}
        self._open = reopen
        self._engine_timeout_s = engine_timeout_s
        self._engine_failures = engine_failures
        self._reopen_pause_max_s = reopen_pause_max_s
        self._metrics = metrics
        self._measured = {lane: LaneMetrics(metrics, lane) for lane in LANES}
        self._lanes: dict[Lane, FairQueue[Pending]] = {lane: FairQueue() for lane in LANES}
        self._running: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._jobs: set[Job] = set()
        # What runs on a host that can leave a batch.
        self._batches: dict[asyncio.Task[None], list[Pending]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump_is_due = False
        # Whether texts of answered requests lie in the queue.
        self._stale = False
        self._failures = 0
        # What the last try to reopen the engine ended with.
        self._closed_by: str | None = None
        self._host: EngineHost | None = None

    def start(self, host: EngineHost, limits: Limits) -> None:
        """Compute with this host from now on. Whether the gateway is ready is the caller's to say."""
        self._host, self.limits, self._failures = host, limits, 0
        host.lost.add_done_callback(lambda lost: None if lost.cancelled() else self._lose(host, lost.result(), "died"))
        # The time without an engine says nothing of how fast one drains the lanes.
        for rate in self.rates.values():
            rate.begin(time.monotonic())
        self._pump_soon()

    def wait_for_host(self, limits: Limits, how: str) -> None:
        """Serve without a host: red readiness, requests answered with 503, until one can be opened."""
        self.limits, self.state, self._closed_by = limits, "reopening", "EngineLost"
        self._spawn(self._reopen(None, how), "reopen")

    def reserve(self, lane: Lane, client: str, tokens: int) -> None:
        """Count tokens as queued; negative ones give them back."""
        held = self.queued[lane]
        held[client] += tokens
        if held[client] <= 0:
            del held[client]

    def submit(self, job: Job, rows: list[NDArray[np.int32]]) -> None:
        """Queue the texts of a job. Raises EngineLost or ShuttingDown where nothing would answer it soon."""
        if self.state == "stopped":
            self._metrics.rejected_requests.labels("shutting_down").inc()
            raise ShuttingDown("the server is shutting down; send the request to another one, or again later")
        if self._closed_by is not None:
            self._metrics.rejected_requests.labels("engine_lost").inc()
            raise EngineLost(f"the engine failed and can't be reopened yet ({self._closed_by}); send the request again")
        now = time.monotonic()
        if not len(self._lanes[job.lane]) and not self._running[job.lane]:
            self.rates[job.lane].begin(now)
        self._jobs.add(job)
        self.reserve(job.lane, job.client, job.tokens)
        job.done.add_done_callback(lambda _: self._forget(job))
        # Not call_at: the loop's clock need not be the monotonic one.
        job.timer = asyncio.get_running_loop().call_later(job.deadline - now, self._expire, job)
        self._lanes[job.lane].add(job.client, [Pending(ids, job, row, now) for row, ids in enumerate(rows)])
        self._measured[job.lane].queue_requests.inc()
        self._measured[job.lane].queue_tokens.inc(job.tokens)
        self._pump_soon()

    async def stop(self) -> None:
        """Refuse what still waits, and end the engine's host."""
        self.refuse_all()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        host, self._host = self._host, None
        if host is not None:
            await host.close()

    def refuse_all(self) -> None:
        """Answer what still waits with ShuttingDown, and everything that comes."""
        self.state = "stopped"
        self._metrics.rejected_requests.labels("shutting_down").inc(len(self._jobs))
        self._fail_all(ShuttingDown("the server is shutting down; send the request to another one, or again later"))

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        self._stale = self._stale or job.remaining > 0
        self.reserve(job.lane, job.client, -job.tokens)
        if job.client not in self.queued[job.lane]:
            self._lanes[job.lane].close_books(job.client)
        if job.timer is not None:
            job.timer.cancel()
        self._measured[job.lane].queue_requests.dec()
        self._measured[job.lane].queue_tokens.dec(job.tokens)
        if job.done.cancelled():
            self._metrics.rejected_requests.labels("abandoned").inc()
        if job.remaining > 0:
            for task, batch in self._batches.items():
                if all(pending.job.done.done() for pending in batch):
                    task.cancel()

    def _expire(self, job: Job) -> None:
        if not job.done.done():
            self._metrics.rejected_requests.labels("deadline").inc()
            job.fail(DeadlineExceeded(waiting=job.remaining, total=job.rows))

    def _fail_all(self, error: Me5Error) -> None:
        for waiting in self._lanes.values():
            waiting.keep(lambda _: False)
        for job in list(self._jobs):
            job.fail(error)

    def _pump_soon(self) -> None:
        """Once this turn of the event loop is over, so that requests that came together share a batch."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Start as many batches as may run now."""
        self._pump_is_due = False
        # Answered, abandoned and expired texts leave before they cost anything.
        if self._stale:
            self._stale = False
            for queue in self._lanes.values():
                queue.keep(lambda pending: not pending.job.done.done())
        while self._host is not None:
            waiting = {lane: len(queue) for lane, queue in self._lanes.items()}
            lane = next_lane(waiting, self._running, self.limits.streams)
            if lane is None:
                return
            free = self.limits.streams - sum(self._running.values())
            wide = lone(waiting, self._running)
            queue = self._lanes[lane]
            batch = queue.take(share(self.limits, queue.tokens, free))
            self._running[lane] += 1
            task = self._spawn(self._run(self._host, lane, batch, wide), "batch")
            task.add_done_callback(functools.partial(self._ended, lane))
            if self._host.remote:
                self._batches[task] = batch
                task.add_done_callback(self._batches.pop)

    async def _run(self, host: EngineHost, lane: Lane, batch: list[Pending], wide: bool) -> None:
        started = time.monotonic()
        try:
            traced = self.trace_batch(host, lane, batch, started)
            async with traced as traceparent, asyncio.timeout(self._engine_timeout_s):
                found = await ask(host, batch, lane=lane, wide=wide, traceparent=traceparent)
        except TimeoutError:
            log.critical("the engine did not finish a batch in %g s; it is ended", self._engine_timeout_s)
            host.kill("it hung")
            self._fail(batch, EngineLost("the engine hung on a batch and is started again; send the request again"))
            self._lose(host, "it hung", "hung")
        except (DeadlineExceeded, Overloaded, UpstreamFailed) as error:
            self._refuse(batch, error)
        except EngineLost as error:
            log.error("batch of %d texts lost: %s", len(batch), error)
            self._fail(batch, EngineLost("the engine was lost and is started again; send the request again"))
            self._lose(host, error.message, "died")
        except EngineFailed as error:
            self._failures += 1
            log.error("batch of %d texts failed (%d in a row): %s", len(batch), self._failures, error)
            # Its own words may name files of the server: they are for the operator, in the log and at start.
            how = "the server's log says how" if self.state == "ready" else error.message
            self._fail(batch, EngineFailed(f"the engine failed on this request's batch: {how}"))
            self._give_up_on_failures(host)
        else:
            finite = finite_rows(found)
            self._failures = 0 if any(finite) else self._failures + 1
            self._hand_out(lane, batch, found, finite, started)
            self._give_up_on_failures(host)

    def _ended(self, lane: Lane, _: asyncio.Task[None]) -> None:
        """A batch is over, whatever became of it; one that was cancelled may not even have begun."""
        self._running[lane] -= 1
        self._pump_soon()

    def _give_up_on_failures(self, host: EngineHost) -> None:
        # While starting, another engine may be tried; that is not this loop's to decide.
        if self._failures >= self._engine_failures and self.state == "ready" and not host.remote:
            self._lose(host, f"{self._failures} batches in a row failed", "failed")
            host.kill("its batches failed")

    def _refuse(self, batch: list[Pending], error: DeadlineExceeded | Overloaded | UpstreamFailed) -> None:
        """What an engine elsewhere says of a batch, for each request of it; the host goes on."""
        for job in {id(pending.job): pending.job for pending in batch if not pending.job.done.done()}.values():
            if isinstance(error, DeadlineExceeded):
                self._expire(job)
                continue
            reason = "overloaded" if isinstance(error, Overloaded) else "engine_lost"
            self._metrics.rejected_requests.labels(reason).inc()
            # One for each: what was raised holds the frames of this batch, and so the jobs themselves.
            job.fail(
                Overloaded(error.message, retry_after_s=error.retry_after_s or 1)
                if isinstance(error, Overloaded)
                else UpstreamFailed(error.message)
            )

    def _fail(self, batch: list[Pending], error: Me5Error) -> None:
        if isinstance(error, EngineLost):
            lost = {id(pending.job) for pending in batch if not pending.job.done.done()}
            self._metrics.rejected_requests.labels("engine_lost").inc(len(lost))
        for pending in batch:
            pending.job.fail(error)

    def _hand_out(self, lane: Lane, batch: list[Pending], found: Found, finite: list[bool], started: float) -> None:
        now = time.monotonic()
        if not all(finite):
            log.error("%d of %d vectors of a batch are not finite", finite.count(False), len(batch))
        for index, pending in enumerate(batch):
            job = pending.job
            if not finite[index]:
                job.fail(EngineFailed(f"the engine gave a vector that is not finite for input {pending.row}"))
            if job.done.done():
                continue
            job.put(pending.row, found[index])
            job.queue_s += started - pending.arrived
            job.engine_s += now - started
            job.remaining -= 1
            if job.remaining == 0:
                job.done.set_result(None)
        self._measure(lane, batch, started, now)

    def _measure(self, lane: Lane, batch: list[Pending], started: float, now: float) -> None:
        measured = self._measured[lane]
        tokens = sum(pending.length for pending in batch)
        area = self.limits.shapes.width(max(pending.length for pending in batch)) * len(batch)
        # Where nothing waits, the lane is as slow as those who ask, which says nothing of how fast it could drain.
        if len(self._lanes[lane]):
            self.rates[lane].add(tokens, now)
        else:
            self.rates[lane].begin(now)
        measured.engine_duration_s.observe(now - started)
        measured.batch_size.observe(len(batch))
        measured.batch_tokens.observe(tokens)
        measured.batch_padding_ratio.observe(1 - tokens / area)
        for pending in batch:
            measured.queue_duration_s.observe(started - pending.arrived)

    def _lose(self, host: EngineHost, how: str, reason: str) -> None:
        """Replace a host that is no good any more; red readiness until another one is proved."""
        if host is not self._host or self.state == "stopped":
            return
        self._host = None
        self._metrics.engine_restarts.labels(reason).inc()
        if self.state == "starting":
            # There is nobody to serve yet: whoever starts sees its texts fail and decides.
            self._fail_all(EngineLost(f"the engine was lost: {how}"))
        elif self.state == "ready":
            self.state = "reopening"
            self._spawn(self._reopen(host, how), "reopen")

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reopen(self, old: EngineHost | None, how: str) -> None:
        """What waits stays queued; where no engine can be opened, it gets 503, and so does what comes.

        old: the host that was lost, or None where there was none yet.
        """
        if old is not None:
            # A channel closes a moment before it is known what the process died of.
            await asyncio.wait({old.lost}, timeout=EPITAPH_TIMEOUT_S)
            log.error("the engine is lost: %s", old.lost.result() if old.lost.done() else how)
            await old.close()
        pause_s, said = min(1.0, self._reopen_pause_max_s), ""
        while True:
            try:
                host = await self._open()
            except Me5Error as error:
                # The same reason again and again would fill the log.
                if error.message != said or pause_s >= 1:
                    log.error("the engine can't be reopened, next try in %g s: %s", pause_s, error)
                said = error.message
                self._closed_by = type(error).__name__
                self._metrics.rejected_requests.labels("engine_lost").inc(len(self._jobs))
                self._fail_all(EngineLost("the engine failed and can't be reopened yet; send the request again"))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, self._reopen_pause_max_s)
            else:
                self._closed_by = None
                self.state = "ready"
                log.warning("the engine is back")
                self.start(host, self.limits)
                return
