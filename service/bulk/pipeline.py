"""Windows of records to parts on disk: the next is read and tokenised while one is computed, and the last is stored.

Three windows at most are held at a time, so memory does not depend on the length of the input.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from service.api.encoding import Vectors
from service.bulk.computing import Vectorizer
from service.bulk.job import Column, Job
from service.bulk.outputs import Layout, table_of
from service.bulk.parts import PartAbout, Parts
from service.bulk.progress import Progress
from service.bulk.records import BadRecord
from service.bulk.window_reader import Window, WindowReader
from service.errors import BadInputLine, Me5Error
from service.processor import processor_name

# Being computed, or stored; one more is being read.
WINDOWS_HELD = 2


@dataclass
class Pipeline:
    """One run of a job, or of some of its windows. layout: of the parts.   run, started: tell it from the runs before;
    the clock is the one that several machines share."""

    job: Job
    vectorizer: Vectorizer
    parts: Parts
    layout: Layout
    progress: Progress
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.time)

    async def compute(self, reader: WindowReader, wanted: Iterable[int]) -> None:
        """Compute and store windows, ascending, up to the input's end. What is stored when it raises stays."""
        self._free = asyncio.Semaphore(self.vectorizer.in_flight)
        self._held = asyncio.Semaphore(WINDOWS_HELD)
        numbers = iter(wanted)

        def read_next() -> Window | None:
            number = next(numbers, None)
            return None if number is None else reader.read(number)

        unread: Me5Error | None = None
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "read") as reading, ThreadPoolExecutor(1, "store") as self._storing:
            try:
                async with asyncio.TaskGroup() as tasks:
                    coming = loop.run_in_executor(reading, read_next)
                    while True:
                        try:
                            window = await coming
                        except Me5Error as error:
                            # What was read before is still computed and stored.
                            unread = error
                            break
                        if window is None:
                            break
                        coming = loop.run_in_executor(reading, read_next)
                        await self._begin(tasks, window)
            except BaseExceptionGroup as group:
                raise _first_of(group) from None
        if unread is not None:
            raise unread

    async def _begin(self, tasks: asyncio.TaskGroup, window: Window) -> None:
        await self._held.acquire()
        vectors = np.zeros((len(window.texts), self.layout.dimension), dtype=self.layout.numpy_dtype)
        batches = []
        for places in self.vectorizer.batches(window.texts):
            await self._free.acquire()
            batches.append(tasks.create_task(self._batch(window, places, vectors)))
        tasks.create_task(self._store(window, vectors, batches))

    async def _batch(self, window: Window, places: list[int], vectors: Vectors) -> None:
        found = await self.vectorizer.run([window.texts[place] for place in places])
        self._free.release()
        vectors[places] = found.vectors
        window.tokens += found.tokens
        window.truncated.update(places[at] for at in found.truncated)
        window.refused.update({places[at]: reason for at, reason in found.refused.items()})
        if found.refused and not self.job.skip_bad:
            at, reason = min(found.refused.items())
            raise BadInputLine(self.job.source, window.texts[places[at]].line, reason)
        self.progress.advance(len(places), found.tokens)

    async def _store(self, window: Window, vectors: Vectors, batches: Sequence[asyncio.Task[None]]) -> None:
        # A batch that fails ends the group, this task included.
        await asyncio.gather(*batches)
        await asyncio.get_running_loop().run_in_executor(self._storing, self._write, window, vectors)
        self._held.release()

    def _write(self, window: Window, vectors: Vectors) -> None:
        kept = [place for place in range(len(window.texts)) if place not in window.refused]
        texts = [window.texts[place] for place in kept]
        truncated = [window.texts[place].truncated or place in window.truncated for place in kept]
        columns: dict[Column, Sequence[object]] = {
            "text": [item.text for item in texts],
            "tokens": [item.tokens for item in texts],
            "truncated": truncated,
        }
        refused = [BadRecord(window.texts[place].line, reason) for place, reason in window.refused.items()]
        about = PartAbout(
            records=window.records,
            texts=len(kept),
            tokens=window.tokens,
            truncated=sum(truncated),
            records_sha256=window.sha256,
            run=self.run,
            elapsed_s=round(max(0.0, time.time() - self.started), 3),
            processor=processor_name(),
            bad=sorted(window.bad + refused, key=lambda item: item.line),
        )
        table = table_of(self.layout, [item.id for item in texts], vectors[kept] if refused else vectors, columns)
        self.parts.write(window.number, table, about)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended a group of tasks; the others were cancelled for it, or failed of the same."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
