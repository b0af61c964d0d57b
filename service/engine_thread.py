"""A thread for work that may never return."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Work(Generic[T]):
    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()

    def run(self) -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = self._call()
        except BaseException as raised:
            error = raised
        try:
            self._loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            # The loop was closed meanwhile: nobody waits any more.
            return

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        if self.future.cancelled():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]


class EngineThread:
    """Does one piece of work after another.

    Unlike an executor's, the thread is a daemon: an engine that hangs can't keep the process from ending.
    """

    def __init__(self) -> None:
        # Whether a call is in there right now.
        self.busy = False
        self._queue: queue.SimpleQueue[_Work[object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Queue a call; the future has its result or its error."""
        work = _Work(call)
        self._queue.put(work)  # type: ignore[arg-type]
        return work.future

    def close(self, wait_s: float) -> None:
        """End the thread after the work it has, and wait for that as long as said.

        A thread still inside an engine's own code when the process ends in an orderly way makes it abort.
        """
        self._queue.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            self.busy = True
            work.run()
            self.busy = False
