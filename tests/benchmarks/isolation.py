"""What it costs that the engine lives in a process of its own: python tests/benchmarks/isolation.py

The same engine on the same batches, called in a thread of this process and in a child over sockets, alternating.
Prints medians, and what of the difference is the bytes of the tensors, which shared memory could save.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import numpy as np
import uvloop

from service.engine import EngineConfig, Widths, open_engine, usable_cores
from service.engine_process import EngineProcess
from service.model import load_model
from service.recipe.tokens import pad
from service.settings import load_settings

SHAPES = ((1, 8), (1, 24), (8, 24), (64, 8))
ROUNDS = 300


async def main() -> None:
    settings = load_settings({})
    model = load_model(settings.model, settings.model_repo)
    config = EngineConfig(str(model.folder), "onnx", "fp32", "cpu", usable_cores(), 1)
    here = open_engine(model.folder, model.spec, threads=config.threads)
    child = await EngineProcess.open(config, widths=Widths(model.spec.dimension, model.spec.states_dimension))
    rng = np.random.default_rng(0)
    print("| rows × tokens | thread, ms | process, ms | difference, µs | of which tensors, µs |\n|---|--:|--:|--:|--:|")
    for count, width in SHAPES:
        rows = [rng.integers(10, 1000, width, dtype=np.int32) for _ in range(count)]
        spent: dict[str, list[float]] = {"thread": [], "process": []}
        for _ in range(ROUNDS):
            started = time.perf_counter()
            await asyncio.to_thread(lambda rows=rows: here.run(pad(rows, model.spec.pad_id)))
            spent["thread"].append(time.perf_counter() - started)
            started = time.perf_counter()
            await child.run(rows, lane="interactive")
            spent["process"].append(time.perf_counter() - started)
        thread, process = (statistics.median(found) for found in spent.values())
        tensors = copy_s(count * (width * 4 + model.spec.dimension * 4))
        print(
            f"| {count} × {width} | {1e3 * thread:.2f} | {1e3 * process:.2f} | {1e6 * (process - thread):.0f} "
            f"| {1e6 * tensors:.0f} |"
        )
    await child.close()


def copy_s(size: int) -> float:
    """Seconds to copy so many bytes into and out of a socket's buffer: four copies in place of none."""
    data, out = bytes(size), bytearray(size)
    spent = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(4):
            out[:] = data
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


if __name__ == "__main__":
    uvloop.run(main())
