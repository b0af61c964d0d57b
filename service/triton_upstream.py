"""One Triton of several: whether it may be asked, and what became of what it was asked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.batching import Lane
from service.errors import Me5Error
from service.metrics import UpstreamMetrics
from service.triton_client import BatchFailed, RemoteModel, TritonClient
from service.triton_errors import Outcome

log = logging.getLogger("me5.triton")

# A Triton that hangs misses a probe, and the next one at once: 0.5 + 0.6 + 0.6 seconds at most.
PROBE_EVERY_S, PROBE_TIMEOUT_S, PROBES_MISSED_MAX = 0.5, 0.6, 2
PROOF_TIMEOUT_S = 30.0
# Wrong weights stay wrong for a while, and others may use that Triton.
PROOF_PAUSE_S, PROOF_PAUSE_MAX_S = 0.5, 5.0
# So long a batch that failed counts as under way: who fails at once would else be the one with the least to do.
PENALTY_S = 0.5


class Upstream:
    """Asked only while `ready`: the model answers there, and its vectors for the golden texts were the right ones.

    name: its address, in metrics and the log.   proof: holds it to the golden vectors; returns the smallest cosine,
    raises BatchFailed or a Me5Error.   changed: called when `ready` turns by what it does, not when it is let go.
    """

    def __init__(
        self,
        name: str,
        model: RemoteModel,
        metrics: UpstreamMetrics,
        *,
        tls_host: str | None,
        proof: Callable[[Upstream], Awaitable[float]],
        changed: Callable[[], None],
    ) -> None:
        """tls_host: the name in its certificate; None speaks plain text."""
        self.name = name
        self.precision = model.precision
        self.ready = False
        self.cosine = 0.0
        # Why it is not ready, in words.
        self.reason = "not asked yet"
        # Tokens with padding of the batches that it has not answered yet.
        self.in_flight = 0
        self._model, self._measured = model, metrics.of(name)
        self._proof, self._changed = proof, changed
        self._failures = 0
        # What was asked before it was proved last says nothing of it now.
        self._proofs = 0
        self._proof_pause_s, self._proof_due = PROOF_PAUSE_S, 0.0
        self._missed = 0
        self._calls: set[asyncio.Task[NDArray[np.float32]]] = set()
        self._look_again = asyncio.Event()
        self._client = TritonClient(name, model, tls_host)
        self._proving: asyncio.Task[None] | None = None
        self._probing = asyncio.create_task(self._probe_for_ever(), name=f"probe {name}")

    async def run(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,
        unit: bool = True,
        deadline: float | None = None,
        traceparent: str | None = None,
    ) -> NDArray[np.float32]:
        """float32[B, D], as EngineHost.run says. Raises BatchFailed; cancelling cancels the call."""
        started, size = time.monotonic(), len(rows) * self._model.shapes.width(max(map(len, rows)))
        proofs = self._proofs
        outcome: Outcome = "failed"
        self.in_flight += size
        self._measured.in_flight.inc()
        call = asyncio.ensure_future(
            self._client.vectors(rows, lane=lane, unit=unit, deadline=deadline, traceparent=traceparent)
        )
        self._calls.add(call)
        try:
            await asyncio.wait({call})
            vectors = call.result()
            outcome = "ok"
            if proofs == self._proofs:
                self._judge(bool(np.isfinite(vectors).any()), "its vectors are not finite")
            return vectors
        except BatchFailed as failed:
            outcome = failed.outcome
            if proofs == self._proofs and outcome == "lost":
                self._turn_red(failed.message)
            elif proofs == self._proofs and outcome == "failed":
                self._judge(False, failed.message)
            raise
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if call.cancelled() and current is not None and not current.cancelling():
                # Not who waits, but the probing gave it up.
                outcome = "lost"
                raise BatchFailed("lost", f"{self.name} hangs") from None
            outcome = "cancelled"
            call.cancel()
            raise
        finally:
            self._calls.discard(call)
            self._count(outcome, size, time.monotonic() - started)
            # An error's traceback holds this frame, and the call its error.
            del call

    async def close(self) -> None:
        """Give up its calls and its channel."""
        self.ready = False
        self._measured.ready.set(0)
        own = {task for task in (self._probing, self._proving) if task is not None}
        for task in (*own, *self._calls):
            task.cancel()
        await asyncio.wait({*own, *self._calls})
        await self._client.close()

    async def retire(self) -> None:
        """Let it answer what it has, and forget it."""
        self.ready = False
        self._probing.cancel()
        if self._proving is not None:
            self._proving.cancel()
        while self._calls:
            await asyncio.wait(set(self._calls))
        await self.close()
        self._measured.forget()

    def _count(self, outcome: Outcome, size: int, spent_s: float) -> None:
        self._measured.in_flight.dec()
        self._measured.batches[outcome].inc()
        if outcome == "ok":
            self._measured.duration_s.observe(spent_s)
        if outcome in ("ok", "cancelled"):
            self._release(size)
        else:
            asyncio.get_running_loop().call_later(PENALTY_S, self._release, size)

    def _release(self, size: int) -> None:
        self.in_flight -= size

    def _judge(self, good: bool, message: str) -> None:
        self._failures = 0 if good else self._failures + 1
        if self._failures >= self._model.failures and self.ready:
            self._turn_red(f"{self._failures} batches in a row failed: {message}")

    def _turn_red(self, reason: str) -> None:
        if self.ready or self.reason != reason:
            log.warning("%s is not ready: %s", self.name, reason)
        was, self.ready, self.reason = self.ready, False, reason
        # It may come back with another configuration.
        self._client.rows_max = 0
        self._measured.ready.set(0)
        self._look_again.set()
        if was:
            self._changed()

    async def _probe_for_ever(self) -> None:
        while True:
            try:
                await self._probe()
            except Exception as error:
                # Whatever it is, a Triton that nobody looks at any more must not stay green.
                log.exception("probing %s failed", self.name)
                self._turn_red(f"it can't be asked: {error!r}")
            if 0 < self._missed < PROBES_MISSED_MAX:
                continue
            self._look_again.clear()
            try:
                async with asyncio.timeout(PROBE_EVERY_S):
                    await self._look_again.wait()
                # What was lost a moment ago is not back yet.
                await asyncio.sleep(PROBE_EVERY_S / 5)
            except TimeoutError:
                pass

    async def _probe(self) -> None:
        try:
            reason = await self._client.not_ready(PROBE_TIMEOUT_S)
            self._missed = 0
        except BatchFailed as failed:
            self._missed = self._missed + 1 if failed.outcome == "deadline" else PROBES_MISSED_MAX
            if self._missed < PROBES_MISSED_MAX:
                return
            reason = failed.message
            if self._missed > PROBES_MISSED_MAX:
                # It has been silent for three probes: what it has, another one may compute.
                for call in self._calls:
                    call.cancel()
        if reason is not None:
            # Another model may be there when it is back.
            self._proof_pause_s = PROOF_PAUSE_S
            self._turn_red(reason)
        elif not self.ready and self._proving is None and time.monotonic() >= self._proof_due:
            self._proving = asyncio.create_task(self._prove(), name=f"prove {self.name}")

    async def _prove(self) -> None:
        """Green once its golden vectors are the model's: the same name may stand for other weights there."""
        self._proofs += 1
        try:
            async with asyncio.timeout(PROOF_TIMEOUT_S):
                self.cosine = await self._proof(self)
            reason = "it fell silent" if self._missed else None
        except TimeoutError:
            reason = f"no golden vectors in {PROOF_TIMEOUT_S:g} s"
        except (BatchFailed, Me5Error) as error:
            reason = error.message
        except Exception as error:
            log.exception("proving %s failed", self.name)
            reason = f"it can't be proved: {error!r}"
        finally:
            self._proving = None
        if reason is not None:
            self._proof_due = time.monotonic() + self._proof_pause_s
            self._proof_pause_s = min(2 * self._proof_pause_s, PROOF_PAUSE_MAX_S)
            self._turn_red(reason)
            return
        self._failures, self._proof_pause_s = 0, PROOF_PAUSE_S
        # Calls of the proof, and of the time before it, are over or count no more.
        self._proofs += 1
        self.ready, self.reason = True, ""
        self._measured.ready.set(1)
        log.info("%s is ready: golden cosine %.6f", self.name, self.cosine)
        self._changed()
