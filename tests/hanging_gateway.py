"""A real gateway around the real engine, which hangs for good on a request of thirteen texts. Run as a process."""

from __future__ import annotations

import time

import numpy as np
from faulty_engine import FaultyEngine
from numpy.typing import NDArray

from service.recipe.tokens import TokenBatch
from service.server import run
from service.settings import load_settings

ROWS_TO_HANG = 13


def hang(batch: TokenBatch, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    if batch.rows == ROWS_TO_HANG:
        time.sleep(3600)
    return vectors


if __name__ == "__main__":
    engine = FaultyEngine()
    engine.fault = hang
    run(load_settings(), engine)
