"""What a batch asks of its engine: vectors, token states, or of some texts the one and of others the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from service.batching import Lane
from service.engine import EngineHost
from service.jobs import Found, Pending
from service.recipe.pooling import l2_normalize


async def ask(host: EngineHost, batch: Sequence[Pending], *, lane: Lane, wide: bool, traceparent: str | None) -> Found:
    """What each text of a batch wants, in the batch's order; raises what the host raises.

    A batch that wants both is computed in two parts: what makes a vector of token states is the graph's own business,
    for it may be more than their mean.
    """
    wants_states = [pending.job.starts is not None for pending in batch]
    deadline = max(pending.job.deadline for pending in batch)
    plain = [pending for pending, wanted in zip(batch, wants_states, strict=True) if not wanted]
    if not any(wants_states):
        return await _vectors(host, plain, lane, wide, deadline, traceparent)
    whole = [pending for pending, wanted in zip(batch, wants_states, strict=True) if wanted]
    states = iter(await _states(host, whole, lane, deadline, traceparent))
    vectors: Iterator[NDArray[np.float32]] = iter(())
    if plain:
        vectors = iter(await _vectors(host, plain, lane, wide, deadline, traceparent))
    return [next(states) if wanted else next(vectors) for wanted in wants_states]


async def _vectors(
    host: EngineHost, batch: Sequence[Pending], lane: Lane, wide: bool, deadline: float, traceparent: str | None
) -> NDArray[np.float32]:
    """[B, D], each of length one unless its request declines."""
    unit = all(pending.job.unit for pending in batch)
    rows = [pending.ids for pending in batch]
    found = await host.run(rows, lane=lane, unit=unit, wide=wide, deadline=deadline, traceparent=traceparent)
    if not unit:
        scaled = [index for index, pending in enumerate(batch) if pending.job.unit]
        found[scaled] = l2_normalize(found[scaled])
    return found


async def _states(
    host: EngineHost, batch: Sequence[Pending], lane: Lane, deadline: float, traceparent: str | None
) -> list[NDArray[np.float32]]:
    """[n, D] of each text."""
    rows = [pending.ids for pending in batch]
    states = await host.states(rows, lane=lane, deadline=deadline, traceparent=traceparent)
    return np.split(states, np.cumsum([pending.length for pending in batch])[:-1])
