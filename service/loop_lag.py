"""How late the event loop comes to what is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

INTERVAL_S = 0.1


def watch_lag(observe: Callable[[float], None], interval_s: float = INTERVAL_S) -> Callable[[], None]:
    """Have the running loop call every interval_s, and observe the seconds each call is late. Returns what ends it."""
    loop = asyncio.get_running_loop()
    # Not the loop's own clock: it stands still while a callback runs, and counts milliseconds.
    due = time.perf_counter() + interval_s
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal due, timer
        now = time.perf_counter()
        observe(max(0.0, now - due))
        due = now + interval_s
        timer = loop.call_later(interval_s, tick)

    timer = loop.call_later(interval_s, tick)
    return lambda: timer.cancel()
