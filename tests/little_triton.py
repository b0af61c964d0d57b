"""A Triton of a few lines on the real protocol, for what a real one does not do on demand: NaN, wrong shapes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import numpy as np
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as protocol

from service.engine_triton import Target, TritonPool
from service.metrics import UpstreamMetrics
from service.shapes import shapes_of
from service.triton_client import RemoteModel
from service.triton_upstream import Upstream

DIMENSION = 8
ROW = np.ones(8, dtype=np.int32)


class LittleTriton(protocol.GRPCInferenceServiceServicer):
    """answer: ok, nan, shape, bytes, full, expired, memory, or wrong.   silent: no call gets an answer.

    delay_s: of every batch.   row_delay_s: of every row, beside that.   sizes: of the batches it was asked for.
    rows_max: its max_batch_size.
    """

    def __init__(self) -> None:
        self.answer, self.delay_s, self.rows_max, self.silent = "ok", 0.0, 256, False
        self.row_delay_s = 0.0
        self.sizes: list[int] = []
        self.address = ""

    async def ModelReady(self, request: object, context: object) -> object:  # noqa: N802, ARG002
        await self._silence()
        return messages.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: object, context: object) -> object:  # noqa: N802, ARG002
        found = messages.ModelConfigResponse()
        found.config.max_batch_size = self.rows_max
        return found

    async def ModelInfer(self, request: messages.ModelInferRequest, context: grpc.aio.ServicerContext) -> object:  # noqa: N802
        await self._silence()
        rows = request.inputs[0].shape[0]
        self.sizes.append(rows)
        await asyncio.sleep(self.delay_s + self.row_delay_s * rows)
        refusals = {
            "full": (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
            "expired": (grpc.StatusCode.UNAVAILABLE, "Request timeout expired"),
            "memory": (grpc.StatusCode.INTERNAL, "onnx runtime error: failed to allocate"),
        }
        if rows > self.rows_max:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"batch-size must be <= {self.rows_max}")
        if self.answer in refusals:
            await context.abort(*refusals[self.answer])
        vectors = np.full((rows, DIMENSION), np.nan if self.answer == "nan" else 1.0, dtype=np.float32)
        found = messages.ModelInferResponse()
        output = found.outputs.add(name="sentence_embedding", datatype="FP32")
        output.shape.extend([rows, DIMENSION - 1] if self.answer == "shape" else [rows, DIMENSION])
        found.raw_output_contents.append(vectors.tobytes()[: -4 * rows if self.answer in ("shape", "bytes") else None])
        return found

    async def _silence(self) -> None:
        while self.silent:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def little_tritons(count: int = 1) -> AsyncIterator[list[LittleTriton]]:
    """So many of them, each on a port of its own."""
    found, servers = [LittleTriton() for _ in range(count)], []
    for each in found:
        server = grpc.aio.server()
        protocol.add_GRPCInferenceServiceServicer_to_server(each, server)
        each.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    try:
        yield found
    finally:
        for each in found:
            each.silent = False
        for server in servers:
            await server.stop(None)


@asynccontextmanager
async def pool_of(tritons: list[LittleTriton], *, timeout_s: float = 60.0) -> AsyncIterator[TritonPool]:
    """A pool of them, of which one is ready."""
    model = RemoteModel(
        name="m",
        version="1",
        inputs=("input_ids", "attention_mask"),
        output="sentence_embedding",
        raw_output=None,
        pooled=True,
        pad_id=1,
        dimension=DIMENSION,
        precision="fp32",
        shapes=shapes_of("triton", 512),
        timeout_s=timeout_s,
        failures=3,
    )

    async def proof(upstream: Upstream) -> float:
        await upstream.run([ROW], lane="interactive")
        return 1.0

    registry = CollectorRegistry()
    targets = [Target("127.0.0.1", int(each.address.rpartition(":")[2])) for each in tritons]
    pool = TritonPool(targets, model, 16, UpstreamMetrics(registry), proof)
    pool.registry = registry  # type: ignore[attr-defined]
    try:
        await pool.wait_until_ready(20)
        await until(lambda: len(pool.ready()) == len(tritons))
        yield pool
    finally:
        async with asyncio.timeout(20):
            await pool.close()


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait until it holds."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up, "it never came"
        await asyncio.sleep(0.01)


def counted(pool: TritonPool, name: str, **labels: str) -> float:
    """A metric of the pool, 0 where there is no such series."""
    return pool.registry.get_sample_value(name, labels) or 0.0  # type: ignore[attr-defined]
