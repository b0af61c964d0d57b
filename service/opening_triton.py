"""From settings and a model version to Triton as its engine's host."""

from __future__ import annotations

import asyncio

from service.batching import Limits
from service.engine_triton import TritonHost, targets_of
from service.metrics import UpstreamMetrics
from service.model import Model
from service.opening import prove_host
from service.settings import Settings
from service.shapes import shapes_of
from service.triton_upstream import RemoteModel, Upstream

# Enough to keep several Tritons and their dynamic batchers busy; each is small, so that a query waits for little.
STREAMS, BATCH_TOKENS = 16, 2048


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
    )


def remote_limits(settings: Settings, model: Model) -> Limits:
    """The limits of a batch, and how many are under way at a time."""
    shapes = shapes_of("triton", model.spec.max_tokens)
    return Limits(settings.max_batch_tokens or BATCH_TOKENS, settings.streams or STREAMS, shapes)


async def open_triton(settings: Settings, model: Model, metrics: UpstreamMetrics) -> TritonHost:
    """A host with one proved Triton at least. Raises EngineLost where there is none for now."""

    async def proof(upstream: Upstream) -> float:
        return await prove_host(upstream, model)

    # Read before anything is proved with it; from then on it is there.
    await asyncio.wrap_future(model.reading)
    return await TritonHost.open(
        targets_of(settings.triton_urls),
        remote_model(settings, model),
        streams=settings.streams or STREAMS,
        metrics=metrics,
        proof=proof,
    )
