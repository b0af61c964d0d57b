"""Records to windows of prepared texts, in a thread of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from service.bulk.computing import Prepared, Vectorizer
from service.bulk.job import Job, Source
from service.bulk.records import BadRecord, Record, Records
from service.errors import BadInputLine, OtherJob

# Texts are tokenised so many at a time, or so many characters: long ones are not held together.
SLICE_RECORDS, SLICE_CHARACTERS = 256, 1 << 20


@dataclass
class Window:
    """A window on its way. sha256: of its records.   texts: in the input's order.   bad: what gives no vector.

    truncated, refused: what is known of texts, by place, once they are computed.
    """

    number: int
    records: int = 0
    sha256: str = ""
    texts: list[Prepared] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    tokens: int = 0
    truncated: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)


class WindowReader:
    """The windows of an input, ascending. stored_sha256: of a window's records, as they were when it was stored."""

    def __init__(
        self,
        job: Job,
        source: Source,
        records: Records,
        vectorizer: Vectorizer,
        stored_sha256: Callable[[int], str],
    ) -> None:
        self._job, self._source, self._records, self._vectorizer = job, source, records, vectorizer
        self._stored_sha256 = stored_sha256
        self._iterator: Iterator[Record | BadRecord] | None = None
        self._next = 0

    def read(self, number: int) -> Window | None:
        """A window of this number or, where the input ends before it, None. Numbers only go up from call to call."""
        if not self._pass_over(number):
            return None
        window, slice_, characters = Window(number), list[Record](), 0
        digest = hashlib.sha256()
        for record in self._window():
            window.records += 1
            digest.update(_words(record))
            if isinstance(record, BadRecord):
                self._set_aside(window, record)
                continue
            slice_.append(record)
            characters += len(record.text)
            if len(slice_) == SLICE_RECORDS or characters > SLICE_CHARACTERS:
                self._prepare(window, slice_)
                slice_, characters = [], 0
        self._prepare(window, slice_)
        window.sha256 = digest.hexdigest()
        self._next = number + 1
        return window if window.records else None

    def _window(self) -> Iterator[Record | BadRecord]:
        """The records of the next window."""
        # One iterator for many windows: Parquet's begins with reading again what its row group has before.
        self._iterator = self._iterator or iter(self._records)
        for _ in range(self._job.window):
            record = next(self._iterator, None)
            if record is None:
                return
            yield record

    def _pass_over(self, number: int) -> bool:
        """Whether there is anything from this window on. What was not hashed beforehand is compared as it passes."""
        windows = number - self._next
        if windows and self._source.sha256 is not None:
            self._iterator = None
            return self._records.skip(windows * self._job.window) == windows * self._job.window
        for passed in range(self._next, number):
            digest, count = hashlib.sha256(), 0
            for record in self._window():
                digest.update(_words(record))
                count += 1
            if digest.hexdigest() != self._stored_sha256(passed):
                raise OtherJob(
                    f"{self._source.name}: records {passed * self._job.window} to {passed * self._job.window + count} "
                    "are not those that the job was begun with; give it the same input, or begin anew by --overwrite"
                )
        return True

    def _prepare(self, window: Window, slice_: list[Record]) -> None:
        for item in self._vectorizer.prepare(slice_, keep_text="text" in self._job.columns) if slice_ else ():
            if isinstance(item, BadRecord):
                self._set_aside(window, item)
            else:
                window.texts.append(item)

    def _set_aside(self, window: Window, record: BadRecord) -> None:
        if not self._job.skip_bad:
            raise BadInputLine(self._job.source, record.line, record.reason)
        window.bad.append(record)


def _words(record: Record | BadRecord) -> bytes:
    words = (record.id, record.text) if isinstance(record, Record) else (record.reason,)
    return "\x1f".join((str(record.line), *words, "\x1e")).encode("utf-8")
