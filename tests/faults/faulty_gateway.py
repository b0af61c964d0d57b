"""The real gateway, whose engine process is faulty_worker.py. Run as a process, with the file of orders."""

from __future__ import annotations

import sys
from pathlib import Path

from service.engine import EngineConfig, EngineHost, Widths
from service.engine_process import EngineProcess
from service.server import run
from service.settings import load_settings

WORKER = (sys.executable, str(Path(__file__).parent / "faulty_worker.py"))


async def open_faulty(config: EngineConfig, widths: Widths) -> EngineHost:
    return await EngineProcess.open(config, widths=widths, command=(*WORKER, sys.argv[1]))


if __name__ == "__main__":
    run(load_settings(), open_faulty)
