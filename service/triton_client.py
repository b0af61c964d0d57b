"""One question to one Triton: rows of ids in, vectors out, and what its errors mean."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from service.batching import Lane
from service.recipe.golden import Precision
from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.tokens import pad
from service.shapes import Shapes
from service.triton_config import BULK_PRIORITY, INTERACTIVE_PRIORITY
from service.triton_errors import Outcome, outcome_of

# What a batch's deadline is longer by for gRPC than for Triton's queue: its own answer says more.
GRACE_S = 0.25

PRIORITIES: dict[Lane, int] = {"interactive": INTERACTIVE_PRIORITY, "bulk": BULK_PRIORITY}

_CHANNEL = (
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # gRPC's reconnecting backs off to two minutes by default; the least is also what a handshake may take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that vanished says nothing.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # Of another channel's connection nothing is known.
    ("grpc.use_local_subchannel_pool", 1),
    # Names are looked up here: the exceptions in no_proxy would not know their addresses.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class RemoteModel:
    """What is asked of every Triton.

    version: of the model's folder, as Triton names it.   inputs, output, raw_output, pad_id, dimension: the spec's.
    pooled: whether the graph gives vectors.   precision: what the operator says that Triton computes in.   timeout_s: a
    Triton that answers nothing for so long hangs.   failures: batches in a row that fail before it is proved anew.
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
    failures: int


class BatchFailed(Exception):
    """Triton gave no vectors.   outcome: what that means.   message: Triton's own words, for the log."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome, self.message = outcome, message


class TritonClient:
    """A channel to one Triton, and the model's part of its protocol."""

    def __init__(self, address: str, model: RemoteModel, tls_host: str | None) -> None:
        """tls_host: the name in its certificate; None speaks plain text."""
        self.rows_max = 0
        # When a batch was answered last, on the monotonic clock.
        self.answered = time.monotonic()
        self._model = model
        options = [*_CHANNEL, *([("grpc.ssl_target_name_override", tls_host)] if tls_host else [])]
        self._client = triton.InferenceServerClient(address, ssl=tls_host is not None, channel_args=options)

    async def not_ready(self, timeout_s: float) -> str | None:
        """Why it can't serve the version, or None. Raises BatchFailed where there is no answer."""
        model = self._model
        try:
            # The server's own readiness says nothing of a model that was unloaded.
            if not await self._client.is_model_ready(model.name, model.version, client_timeout=timeout_s):
                return f"it does not serve {model.name}/{model.version}"
            if not self.rows_max:
                config = await self._client.get_model_config(model.name, model.version, client_timeout=timeout_s)
                self.rows_max = config.config.max_batch_size
        except InferenceServerException as error:
            raise BatchFailed(outcome_of(error.status(), error.message()), error.message()) from error
        return None

    async def vectors(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,
        unit: bool,
        deadline: float | None,
        traceparent: str | None,
    ) -> NDArray[np.float32]:
        """float32[B, D], as EngineHost.run says. Raises BatchFailed.

        As many requests as config.pbtxt's max_batch_size asks for; Triton computes them together where it can.
        """
        size = self.rows_max or len(rows)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        if len(parts) == 1:
            return await self._part(rows, lane, unit, deadline, traceparent)
        calls = [asyncio.ensure_future(self._part(part, lane, unit, deadline, traceparent)) for part in parts]
        try:
            return np.concatenate(await asyncio.gather(*calls))
        finally:
            # An error's traceback holds this frame, and a call its error: a ring that the collector would have to find,
            # were a call still named here.
            while calls:
                calls.pop().cancel()

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def _part(
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
        if left_s is not None and left_s <= 0:
            raise BatchFailed("deadline", "its time is up")
        began = time.monotonic()
        try:
            result = await self._client.infer(
                model.name,
                inputs,
                model_version=model.version,
                outputs=[triton.InferRequestedOutput(output)],
                priority=PRIORITIES[lane],
                # Microseconds that it may wait in Triton's queue.
                timeout=None if left_s is None else max(1, int(left_s * 1e6)),
                client_timeout=model.timeout_s if left_s is None else min(left_s + GRACE_S, model.timeout_s),
                headers={"traceparent": traceparent} if traceparent else None,
            )
            found = result.as_numpy(output)
        except InferenceServerException as error:
            outcome = outcome_of(error.status(), error.message())
            if outcome == "deadline" and (deadline is None or time.monotonic() < deadline):
                # Its time is not up. Who says so, or answers others, has too much to do; who says nothing hangs.
                says_so = not str(error.status()).endswith("DEADLINE_EXCEEDED")
                outcome = "rejected" if says_so or self.answered > began else "lost"
            raise BatchFailed(outcome, f"{error.status()}: {error.message()}") from error
        except ValueError as error:
            raise BatchFailed("failed", f"its answer can't be read: {error}") from error
        self.answered = time.monotonic()
        return self._checked(found, batch.mask, unit)

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
