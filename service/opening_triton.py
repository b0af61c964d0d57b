"""From settings and a model version to Triton as its engine's host."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from service.batching import Limits
from service.engine_triton import TritonHost, TritonPool, targets_of
from service.metrics import UpstreamMetrics
from service.model import Model
from service.opening import golden_rows
from service.recipe.golden import prove
from service.settings import Settings
from service.shapes import shapes_of
from service.triton_client import BatchFailed, RemoteModel
from service.triton_upstream import Upstream

# Enough to keep several Tritons and their dynamic batchers busy; each is small, so that a query waits for little.
STREAMS, BATCH_TOKENS = 16, 2048
# What waits for a host stays in the queue for this long; then it is answered, and told so.
OPEN_WAIT_S = 1.0
REJECTED_PAUSE_S = 0.2


def remote_model(settings: Settings, model: Model) -> RemoteModel:
    """What to ask of every Triton."""
    spec = model.spec
    return RemoteModel(
        name=spec.name,
        version=model.version,
        inputs=spec.inputs,
        output=spec.output,
        raw_output=spec.raw_output,
        pooled=spec.pooling == "graph",
        pad_id=spec.pad_id,
        dimension=spec.dimension,
        precision="fp32" if settings.precision == "auto" else settings.precision,
        shapes=shapes_of("triton", spec.max_tokens),
        timeout_s=settings.engine_timeout_s,
        failures=settings.engine_failures,
    )


def remote_limits(settings: Settings, model: Model) -> Limits:
    """The limits of a batch, and how many are under way at a time."""
    shapes = shapes_of("triton", model.spec.max_tokens)
    return Limits(settings.max_batch_tokens or BATCH_TOKENS, settings.streams or STREAMS, shapes)


async def prove_upstream(upstream: Upstream, model: Model) -> float:
    """Hold one Triton to the golden vectors, all texts at once. Returns the smallest cosine, raises GoldenMismatch."""

    async def vector_of(row: NDArray[np.int32]) -> NDArray[np.float32]:
        while True:
            try:
                vector: NDArray[np.float32] = (await upstream.run([row], lane="interactive"))[0]
                return vector
            except BatchFailed as failed:
                if failed.outcome != "rejected":
                    raise
            # A full queue says nothing against it; whoever proves it sets the time that this may take.
            await asyncio.sleep(REJECTED_PAUSE_S)

    rows = golden_rows(model)
    asked = [asyncio.ensure_future(vector_of(row)) for row in rows]
    try:
        return prove(model.golden, await asyncio.gather(*asked), upstream.precision)
    finally:
        for each in asked:
            each.cancel()
        asked.clear()


async def open_pool(settings: Settings, model: Model, metrics: UpstreamMetrics) -> TritonPool:
    """Begin to look for Tritons. Raises ModelFileError where the tokenizer can't be read."""
    # Read before anything is proved with it.
    await asyncio.wrap_future(model.reading)

    async def proof(upstream: Upstream) -> float:
        return await prove_upstream(upstream, model)

    return TritonPool(
        targets_of(settings.triton_urls),
        remote_model(settings, model),
        settings.streams or STREAMS,
        metrics,
        proof,
    )


async def open_host(pool: TritonPool) -> TritonHost:
    """A host with one Triton at least that is ready. Raises EngineLost where there is none within OPEN_WAIT_S."""
    await pool.wait_until_ready(OPEN_WAIT_S)
    return TritonHost(pool)
