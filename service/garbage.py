"""When this process looks for garbage that only a collector finds.

Python's own looks after every 700 new objects, whatever the event loop is about: beside a request of a million numbers
that takes 3 to 40 ms, again and again. Requests leave no cycles behind, so a look every few seconds is enough, at a
moment when there is little to walk.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

PAUSE_S = 5.0
# Of so many objects a walk takes about 5 ms.
FEW_OBJECTS = 20_000
# However busy it is, once a minute.
PAUSES_MAX = 12


def is_time(new_objects: int, pauses: int) -> bool:
    """Whether to look now. new_objects: that came since the last look and are still there.   pauses: since then."""
    return new_objects < FEW_OBJECTS or pauses >= PAUSES_MAX


def collect_now_and_then() -> Callable[[], None]:
    """Take the collector over from Python while the running loop serves. Returns what gives it back.

    What is there now is for ever: it is never walked again. Some two thousand objects of it are garbage that imports
    left; to find them takes 60 ms, for which nobody should wait before the gateway is ready.
    """
    loop = asyncio.get_running_loop()
    pauses = 0
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal pauses, timer
        pauses += 1
        if is_time(gc.get_count()[0], pauses):
            gc.collect()
            pauses = 0
        timer = loop.call_later(PAUSE_S, look)

    def end() -> None:
        timer.cancel()
        gc.unfreeze()
        gc.enable()

    gc.freeze()
    gc.disable()
    timer = loop.call_later(PAUSE_S, look)
    return end
