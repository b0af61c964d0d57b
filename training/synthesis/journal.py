"""Every answer as it came, a line each: what was paid for is never asked again, whenever the process is killed.

The first line says what the synthesis is made by. Answers follow in the order in which they came.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from training.errors import BadTrainingData, RunExists, SettingsChanged

Part = Literal["tasks", "example"]
Number = tuple[Part, int]


@dataclass(frozen=True)
class Entry:
    """The answer to one number.

    text: as it came; None where the endpoint refused, see `refused`.   task: that an example was asked for.
    unsafe: what a moderation endpoint says of it; None where it was not asked.
    """

    part: Part
    number: int
    text: str | None
    task: str = ""
    refused: str = ""
    unsafe: list[str] | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Journal(Mapping[Number, Entry]):
    """(part, number) → its newest answer, read from the file when it is asked for: half a million fill the memory."""

    def __init__(self, path: Path, made_by: Mapping[str, object]) -> None:
        """made_by: what the answers depend on. Open it by `with`."""
        self.path, self.made_by = path, dict(made_by)
        # Where each line begins.
        self._places: dict[Number, int] = {}

    def __getitem__(self, key: Number) -> Entry:
        self._stream.seek(self._places[key])
        return Entry(**json.loads(self._stream.readline()))

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Number]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Self:
        """Read what is there and drop a half-written last line.

        Raises SettingsChanged where the answers are another synthesis's, RunExists where another process writes.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise RunExists(f"another process is writing {self.path}; wait for it, or choose another --out") from error
        try:
            self._read()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, entry: Entry) -> None:
        """Write an answer. It is in the file when this returns, whatever becomes of the process."""
        self._places[entry.part, entry.number] = self._write(asdict(entry))

    def _write(self, content: dict[str, object]) -> int:
        """Where the line begins: always at the end, for the file is opened for appending."""
        place = self._stream.seek(0, os.SEEK_END)
        self._stream.write(json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._stream.flush()
        return place

    def _read(self) -> None:
        self._stream.seek(0)
        place = 0
        for number, line in enumerate(iter(self._stream.readline, b""), start=1):
            if not line.endswith(b"\n"):
                # Killed while it wrote: that answer is asked for again.
                self._stream.truncate(place)
                break
            try:
                raw = json.loads(line)
                if number == 1:
                    self._compare(raw)
                else:
                    entry = Entry(**raw)
                    self._places[entry.part, entry.number] = place
            except (ValueError, TypeError) as error:
                raise BadTrainingData(
                    f"{self.path}, line {number} is damaged: {error}; take it out, and its answer is asked for again"
                ) from error
            place += len(line)
        if not place:
            self._write(self.made_by)

    def _compare(self, before: dict[str, object]) -> None:
        now = json.loads(json.dumps(self.made_by))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise SettingsChanged(
                f"{', '.join(changed)} differ from those in {self.path}; choose another --out for another synthesis"
            )
