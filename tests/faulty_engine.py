"""The real engine, with faults to order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.engine import Engine, open_engine
from service.model import find_version
from service.recipe.golden import Precision
from service.recipe.spec import load_spec
from service.recipe.tokens import TokenBatch

MODEL_REPO = Path(__file__).resolve().parent.parent / "model_repo"
SHIPPED = find_version("me5_nano", MODEL_REPO)

Fault = Callable[[TokenBatch, NDArray[np.float32]], NDArray[np.float32]]


class FaultyEngine:
    """Runs the shipped model; `fault` sees each batch and its vectors and may raise, change them, or take its time."""

    name = "onnx"
    precision: Precision = "fp32"
    device = "CPUExecutionProvider"
    gives_states = False

    def __init__(self) -> None:
        self._engine: Engine = open_engine(SHIPPED, load_spec(SHIPPED, verify=False))
        self.fault: Fault | None = None
        self.fails_to_close = False
        self.batches: list[TokenBatch] = []
        # Clear to hold the engine in the middle of a batch.
        self.go = threading.Event()
        self.go.set()

    def run(self, batch: TokenBatch, *, unit: bool = True) -> NDArray[np.float32]:
        self.batches.append(batch)
        self.go.wait(30)
        vectors = self._engine.run(batch, unit=unit)
        return vectors if self.fault is None else self.fault(batch, vectors)

    def close(self) -> None:
        if self.fails_to_close:
            raise RuntimeError("already gone")
        self._engine.close()


def raises(batch: TokenBatch, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    raise RuntimeError("out of device memory")


def first_row_nan(batch: TokenBatch, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    broken = vectors.copy()
    broken[0] = np.nan
    return broken


def wrong_shape(batch: TokenBatch, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors[:, :-1]


def slow(seconds: float) -> Fault:
    def sleep(batch: TokenBatch, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(seconds)
        return vectors

    return sleep
