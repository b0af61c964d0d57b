"""The real gateway with a fine probe in its event loop. Run as a process: python tests/lag_gateway.py REPORT.

Every 100 ms a line is appended to REPORT: the clock, and the largest lag and the largest stretch of the loop's thread
on the CPU since the line before, in seconds. The probe calls every millisecond: a stretch is hardly more than one turn.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

import uvloop

from service.loop_lag import watch_lag
from service.server import serve
from service.settings import load_settings

FINE_S = 0.001
REPORT_S = 0.1


def probe(report: TextIO) -> None:
    """Begin to watch the running loop."""
    lag_s = stretch_s = 0.0
    on_cpu_s, reported = time.thread_time(), time.monotonic()

    def observe(late_s: float) -> None:
        nonlocal lag_s, stretch_s, on_cpu_s, reported
        now = time.thread_time()
        lag_s, stretch_s, on_cpu_s = max(lag_s, late_s), max(stretch_s, now - on_cpu_s), now
        if time.monotonic() - reported > REPORT_S:
            reported = time.monotonic()
            report.write(f"{reported} {lag_s} {stretch_s}\n")
            report.flush()
            lag_s = stretch_s = 0.0

    watch_lag(observe, FINE_S)


async def main() -> None:
    with open(sys.argv[1], "w", encoding="utf-8") as report:
        probe(report)
        await serve(load_settings())


if __name__ == "__main__":
    uvloop.run(main())
