"""The engine's process with the real engine in it, which commits the fault that a file orders. Run as a process.

The file holds two words. How often: "once" (one batch), "process" (every batch of the process that reads it first), or
"always" (every batch of every process); and which fault, a name in FAULTS.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.engine import Engine, EngineConfig
from service.engine_worker import main, open_engines
from service.recipe.spec import ModelSpec
from service.recipe.tokens import TokenBatch

Run = Callable[[], NDArray[np.float32]]

TAKEN: list[bytearray] = []


def raises(run: Run) -> NDArray[np.float32]:
    run()
    raise RuntimeError("out of device memory")


def gives_nan(run: Run) -> NDArray[np.float32]:
    return np.full_like(run(), np.nan)


def gives_a_wrong_shape(run: Run) -> NDArray[np.float32]:
    return run()[:, :-1]


def gives_wrong_vectors(run: Run) -> NDArray[np.float32]:
    return np.roll(run(), 1, axis=1)


def hangs(_: Run) -> NDArray[np.float32]:
    # As native code that never lets go of the interpreter's lock: no other thread of the process runs any more.
    ctypes.PyDLL(None).sleep(3600)
    raise AssertionError("an hour is over")


def crashes(_: Run) -> NDArray[np.float32]:
    ctypes.string_at(0)
    raise AssertionError("address 0 can be read")


def lacks_memory(run: Run) -> NDArray[np.float32]:
    # From now on the kernel refuses this process every further page, and what its allocator still had is taken.
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, used))
    for size in (1 << 24, 1 << 20, 1 << 16):
        with contextlib.suppress(MemoryError):
            while True:
                TAKEN.append(bytearray(size))
    return run()


FAULTS = {
    fault.__name__: fault
    for fault in (
        raises,
        gives_nan,
        gives_a_wrong_shape,
        gives_wrong_vectors,
        hangs,
        crashes,
        lacks_memory,
    )
}


class FaultyEngine:
    """The real engine; before each batch it looks whether a fault is ordered."""

    def __init__(self, engine: Engine, orders: Path) -> None:
        self.name, self.precision, self.device = engine.name, engine.precision, engine.device
        self.gives_states = False
        self._engine = engine
        self._orders = orders

    def run(self, batch: TokenBatch, *, unit: bool = True) -> NDArray[np.float32]:
        def run() -> NDArray[np.float32]:
            return self._engine.run(batch, unit=unit)

        fault = self._ordered()
        return run() if fault is None else FAULTS[fault](run)

    def close(self) -> None:
        self._engine.close()

    def _ordered(self) -> str | None:
        mine = self._orders.with_suffix(f".{os.getpid()}")
        if mine.exists():
            return mine.read_text(encoding="ascii").split()[1]
        try:
            how_often, fault = self._orders.read_text(encoding="ascii").split()
            if how_often == "once":
                self._orders.unlink()
            elif how_often == "process":
                self._orders.rename(mine)
        except (FileNotFoundError, ValueError):
            # Nothing is ordered, or the other stream was faster.
            return None
        return fault


if __name__ == "__main__":
    orders = Path(sys.argv[1])

    def open_faulty(config: EngineConfig, spec: ModelSpec) -> tuple[Engine, Engine]:
        wide, narrow = open_engines(config, spec)
        return FaultyEngine(wide, orders), FaultyEngine(narrow, orders)

    main(sys.argv[2:], open_faulty)
