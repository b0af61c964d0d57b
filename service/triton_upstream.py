"""One Triton: its channel, what it is asked, and whether it may be asked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from service.batching import Lane
from service.errors import Me5Error
from service.metrics import UpstreamMetrics
from service.recipe.golden import Precision
from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.tokens import pad
from service.shapes import Shapes
from service.triton_config import BULK_PRIORITY, INTERACTIVE_PRIORITY
from service.triton_errors import Outcome, outcome_of

log = logging.getLogger("me5.triton")

# A dead Triton is known after two of these at most, so readiness is right within two seconds.
PROBE_EVERY_S, PROBE_TIMEOUT_S, PROBES_MISSED_MAX = 0.5, 0.6, 2
# As many batches in a row that only it fails on, and it is proved anew.
FAILURES_MAX = 3
PROOF_TIMEOUT_S = 30.0
# What a batch's deadline is longer by for gRPC than for Triton's queue: its own answer says more.
GRACE_S = 0.25

PRIORITIES: dict[Lane, int] = {"interactive": INTERACTIVE_PRIORITY, "bulk": BULK_PRIORITY}

# gRPC's reconnecting backs off to two minutes by default; keep-alive notices a machine that vanished.
_CHANNEL = (
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # Channels with equal options share a connection; a reopened host is to have a new one.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class RemoteModel:
    """What is asked of every Triton.

    version: of the model's folder, as Triton names it.   inputs, output, raw_output, pad_id, dimension: the spec's.
    precision: what the operator says that Triton computes in.   timeout_s: a batch that takes longer hangs.
    """

    name: str
    version: str
    inputs: tuple[str, ...]
    output: str
    raw_output: str | None
    pooled: bool
    pad_id: int
    dimension: int
    precision: Precision
    shapes: Shapes
    timeout_s: float


class BatchFailed(Exception):
    """Triton gave no vectors.   outcome: what that means.   message: Triton's own words, for the log."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome, self.message = outcome, message


class Upstream:
    """Asked only while `ready`: the model answers there, and its vectors for the golden texts were the right ones.

    name: its address, in metrics and the log.   changed: called whenever `ready` turns.   proof: holds it to the golden
    vectors; returns the smallest cosine, raises a Me5Error.
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
        self._rows_max = 0
        self._calls: set[asyncio.Task[NDArray[np.float32]]] = set()
        # Nobody waits for a future that is made for each change; an event is set and cleared by the probing alone.
        self._look_again = asyncio.Event()
        options = [*_CHANNEL, *([("grpc.ssl_target_name_override", tls_host)] if tls_host else [])]
        self._client = triton.InferenceServerClient(name, ssl=tls_host is not None, channel_args=options)
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
        self.in_flight += size
        self._measured.in_flight.inc()
        call = asyncio.ensure_future(self._vectors(rows, lane, unit, deadline, traceparent))
        self._calls.add(call)
        outcome: Outcome = "ok"
        try:
            await asyncio.wait({call})
            vectors = call.result()
            self._judge(bool(np.isfinite(vectors).any()), "its vectors are not finite")
            return vectors
        except BatchFailed as failed:
            outcome = failed.outcome
            if outcome == "lost":
                self._turn_red(failed.message)
            elif outcome == "failed":
                self._judge(False, failed.message)
            raise
        except asyncio.CancelledError as cancelled:
            outcome = "cancelled"
            if call.cancelled():
                # Not who waits, but the probing gave it up.
                outcome = "lost"
                raise BatchFailed("lost", f"{self.name} hangs") from cancelled
            call.cancel()
            raise
        finally:
            self._calls.discard(call)
            self.in_flight -= size
            self._measured.in_flight.dec()
            self._measured.batches[outcome].inc()
            self._measured.duration_s.observe(time.monotonic() - started)

    async def close(self) -> None:
        """Give up its calls and its channel."""
        self.ready = False
        self._measured.ready.set(0)
        self._probing.cancel()
        for call in self._calls:
            call.cancel()
        await asyncio.wait({self._probing, *self._calls})
        await self._client.close()

    async def retire(self) -> None:
        """Let it answer what it has, and forget it."""
        self.ready = False
        while self._calls:
            await asyncio.wait(set(self._calls))
        await self.close()
        self._measured.forget()

    async def _vectors(
        self,
        rows: Sequence[NDArray[np.int32]],
        lane: Lane,
        unit: bool,
        deadline: float | None,
        traceparent: str | None,
    ) -> NDArray[np.float32]:
        """As many requests as config.pbtxt's max_batch_size asks for; Triton computes them together where it can."""
        size = self._rows_max or len(rows)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        calls = [asyncio.ensure_future(self._call(part, lane, unit, deadline, traceparent)) for part in parts]
        try:
            return np.concatenate(await asyncio.gather(*calls)) if len(calls) > 1 else await calls[0]
        finally:
            for call in calls:
                call.cancel()

    async def _call(
        self,
        rows: Sequence[NDArray[np.int32]],
        lane: Lane,
        unit: bool,
        deadline: float | None,
        traceparent: str | None,
    ) -> NDArray[np.float32]:
        model = self._model
        batch = pad(rows, model.pad_id, model.shapes.width(max(map(len, rows))))
        given = {"input_ids": batch.ids, "attention_mask": batch.mask}
        inputs = []
        for name in model.inputs:
            values = given.get(name)
            values = np.zeros_like(batch.ids) if values is None else values
            inputs.append(triton.InferInput(name, list(values.shape), "INT64").set_data_from_numpy(values))
        output = model.output if unit or not model.pooled else model.raw_output
        left_s = None if deadline is None else deadline - time.monotonic()
        allowed_s = model.timeout_s if left_s is None else min(left_s + GRACE_S, model.timeout_s)
        if left_s is not None and left_s <= 0:
            raise BatchFailed("deadline", "its time is up")
        try:
            result = await self._client.infer(
                model.name,
                inputs,
                model_version=model.version,
                outputs=[triton.InferRequestedOutput(output)],
                priority=PRIORITIES[lane],
                # Microseconds that it may wait in Triton's queue.
                timeout=None if left_s is None else max(1, int(left_s * 1e6)),
                client_timeout=allowed_s,
                headers={"traceparent": traceparent} if traceparent else None,
            )
        except InferenceServerException as error:
            outcome = outcome_of(error.status(), error.message())
            if outcome == "deadline" and (left_s is None or allowed_s < left_s):
                raise BatchFailed("lost", f"no answer in ME5_ENGINE_TIMEOUT_S={model.timeout_s:g}") from error
            raise BatchFailed(outcome, f"{error.status()}: {error.message()}") from error
        return self._checked(result.as_numpy(output), batch.mask, unit)

    def _checked(self, found: NDArray[np.float32] | None, mask: NDArray[np.int64], unit: bool) -> NDArray[np.float32]:
        """Vectors from what came, pooled here where the graph does not pool."""
        model = self._model
        shape = None if found is None else found.shape
        wanted = (len(mask), model.dimension) if model.pooled else (*mask.shape, model.dimension)
        if found is None or shape != wanted or found.dtype != np.float32:
            kind = None if found is None else found.dtype
            raise BatchFailed("failed", f"it gave {kind}{shape} for {model.output}, not float32{wanted}")
        if model.pooled:
            # What came lies in gRPC's message, and can't be written.
            return found.copy()
        states = mean_pool(found, mask.astype(np.float32))
        return l2_normalize(states) if unit else states

    def _judge(self, good: bool, message: str) -> None:
        self._failures = 0 if good else self._failures + 1
        if self._failures >= FAILURES_MAX and self.ready:
            self._turn_red(f"{self._failures} batches in a row failed: {message}")

    def _turn_red(self, reason: str) -> None:
        if self.ready or self.reason != reason:
            log.warning("%s is not ready: %s", self.name, reason)
        was, self.ready, self.reason = self.ready, False, reason
        self._measured.ready.set(0)
        self._look_again.set()
        if was:
            self._changed()

    async def _probe_for_ever(self) -> None:
        missed = 0
        while True:
            try:
                reason = await self._asked()
                missed = 0
            except BatchFailed as failed:
                missed = missed + 1 if failed.outcome == "deadline" else PROBES_MISSED_MAX
                reason = None if missed < PROBES_MISSED_MAX else failed.message
            if reason is not None:
                self._turn_red(reason)
                if missed > PROBES_MISSED_MAX:
                    # It has been silent for three probes: what it has, another one may compute.
                    for call in self._calls:
                        call.cancel()
            elif not self.ready and not missed:
                await self._prove()
            self._look_again.clear()
            try:
                async with asyncio.timeout(PROBE_EVERY_S):
                    await self._look_again.wait()
                # What was lost a moment ago is not back yet.
                await asyncio.sleep(PROBE_EVERY_S / 5)
            except TimeoutError:
                pass

    async def _asked(self) -> str | None:
        """Why it can't serve the version, or None. Raises BatchFailed where there is no answer."""
        model = self._model
        try:
            ready = await self._client.is_model_ready(model.name, model.version, client_timeout=PROBE_TIMEOUT_S)
            # The server's own readiness stays green after its model was unloaded.
            if not ready:
                return f"it does not serve {model.name}/{model.version}"
            if not self._rows_max:
                config = await self._client.get_model_config(model.name, model.version, client_timeout=PROBE_TIMEOUT_S)
                self._rows_max = config.config.max_batch_size
        except InferenceServerException as error:
            raise BatchFailed(outcome_of(error.status(), error.message()), error.message()) from error
        return None

    async def _prove(self) -> None:
        """Green once its golden vectors are the model's: the same name may stand for other weights there."""
        try:
            async with asyncio.timeout(PROOF_TIMEOUT_S):
                self.cosine = await self._proof(self)
        except TimeoutError:
            self._turn_red(f"no golden vectors in {PROOF_TIMEOUT_S:g} s")
        except BatchFailed as failed:
            self._turn_red(failed.message)
        except Me5Error as error:
            self._turn_red(error.message)
        else:
            self._failures = 0
            self.ready, self.reason = True, ""
            self._measured.ready.set(1)
            log.info("%s is ready: golden cosine %.6f", self.name, self.cosine)
            self._changed()
