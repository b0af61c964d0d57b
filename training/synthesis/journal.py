"""Every answer as it came, a line each: what was paid for is never asked again, whenever the process is killed.

The first line says what the synthesis is made by. Answers follow in the order in which they came.
"""

import fcntl
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from training.errors import BadTrainingData, RunExists, SettingsChanged

Part = Literal["tasks", "example"]


@dataclass(frozen=True)
class Entry:
    """The answer to one number.

    text: as it came; None where the endpoint refused, see `refused`.   unsafe: what a moderation endpoint says of it;
    None where it was not asked.
    """

    part: Part
    number: int
    text: str | None
    refused: str = ""
    unsafe: list[str] | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass
class Journal:
    """Opened for adding; entries: (part, number) → answer."""

    path: Path
    made_by: dict[str, object]
    entries: dict[tuple[Part, int], Entry] = field(default_factory=dict)

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
        self._write(asdict(entry))
        self.entries[entry.part, entry.number] = entry

    def _write(self, content: dict[str, object]) -> None:
        self._stream.write(json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._stream.flush()

    def _read(self) -> None:
        self._stream.seek(0)
        content = self._stream.read()
        whole = content.rfind(b"\n") + 1
        # Killed while it wrote: that answer is asked for again.
        self._stream.truncate(whole)
        lines = content[:whole].splitlines()
        if not lines:
            self._write(self.made_by)
            return
        for number, line in enumerate(lines, start=1):
            try:
                raw = json.loads(line)
                if number == 1:
                    self._compare(raw)
                else:
                    entry = Entry(**raw)
                    self.entries[entry.part, entry.number] = entry
            except (ValueError, TypeError) as error:
                raise BadTrainingData(
                    f"{self.path}, line {number} is damaged: {error}; take it out, and its answer is asked for again"
                ) from error

    def _compare(self, before: dict[str, object]) -> None:
        now = json.loads(json.dumps(self.made_by))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise SettingsChanged(
                f"{', '.join(changed)} differ from those in {self.path}; choose another --out for another synthesis"
            )
