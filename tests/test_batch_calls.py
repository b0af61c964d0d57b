"""What a batch asks of its engine, when some of its texts want vectors and others token states."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.batch_calls import ask
from service.errors import EngineFailed

DIMENSION = 3


class Host:
    """An engine whose vectors are no means of its states, as a graph may make them: by the first id of each text."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    async def run(self, rows: list[np.ndarray], *, unit: bool, **_: object) -> np.ndarray:
        self.calls.append(("run", len(rows)))
        found = np.stack([np.array([row[0], 0, 0], dtype=np.float32) for row in rows])
        return found / np.linalg.norm(found, axis=1, keepdims=True) if unit else found

    async def states(self, rows: list[np.ndarray], **_: object) -> np.ndarray:
        self.calls.append(("states", len(rows)))
        return np.concatenate([np.repeat(row[:, None], DIMENSION, axis=1).astype(np.float32) for row in rows])


def pending(*ids: int, states: bool = False, unit: bool = True) -> SimpleNamespace:
    job = SimpleNamespace(starts=[0] if states else None, unit=unit, deadline=1.0)
    return SimpleNamespace(ids=np.array(ids, dtype=np.int32), length=len(ids), job=job)


def asked(host: Host, *batch: SimpleNamespace) -> Any:
    return asyncio.run(ask(host, batch, lane="bulk", wide=False, traceparent=None))  # type: ignore[arg-type]


def test_a_batch_of_vectors_alone_is_one_call_and_one_array() -> None:
    host = Host()
    found = asked(host, pending(5, 6), pending(7))
    assert found.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert host.calls == [("run", 2)]


def test_each_text_gets_what_it_wants_in_the_batchs_order_and_vectors_are_the_engines() -> None:
    host = Host()
    found = asked(host, pending(5, 6), pending(8, 9, 4, states=True), pending(7), pending(3, states=True))
    assert [part.tolist() for part in found] == [[1, 0, 0], [[8] * 3, [9] * 3, [4] * 3], [1, 0, 0], [[3] * 3]]
    assert sorted(host.calls) == [("run", 2), ("states", 2)]


def test_a_batch_of_states_alone_asks_for_no_vectors() -> None:
    host = Host()
    found = asked(host, pending(8, 9, states=True))
    assert [part.shape for part in found] == [(2, DIMENSION)]
    assert host.calls == [("states", 1)]


@pytest.mark.parametrize("states", [False, True])
def test_who_declines_length_one_gets_the_raw_vector_and_the_others_do_not(states: bool) -> None:
    batch = [pending(5, unit=False), pending(7)] + [pending(3, states=True)] * states
    found = asked(Host(), *batch)
    assert [part.tolist() for part in found[:2]] == [[5, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("lost", ["run", "states"])
def test_when_either_call_fails_the_whole_batch_does(lost: str) -> None:
    async def fail(*_: object, **__: object) -> np.ndarray:
        raise EngineFailed("the engine is gone")

    host = Host()
    setattr(host, lost, fail)
    with pytest.raises(EngineFailed, match="is gone"):
        asked(host, pending(5), pending(3, states=True))
