"""Finished windows on disk: what a killed job goes on from.

vectors.parquet.parts/      while the job runs; gone once vectors.parquet is whole
  job.json                  what the parts are of
  lock                      held by the process that writes
  part-00000000.arrow       one window's rows, written beside, synced, then renamed: there whole or not at all
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from service.bulk.job import differences
from service.bulk.records import BadRecord
from service.errors import OtherJob, OutputBusy

_JOB_FILE = "job.json"
_LOCK_FILE = "lock"
_ABOUT = b"me5"


@dataclass(frozen=True)
class PartAbout:
    """A window's figures. records_sha256: of the records it was read from.   run, elapsed_s: by which run of the job it
    was stored, and that run's time until then.   tokens: as the model read them.   processor: what it was computed on.
    """

    records: int
    texts: int
    tokens: int
    truncated: int
    records_sha256: str
    run: str
    elapsed_s: float
    processor: str
    bad: list[BadRecord] = field(default_factory=list)


class Parts:
    """The folder of a job's finished windows."""

    def __init__(self, target: Path) -> None:
        self.folder = target.with_name(f"{target.name}.parts")

    def begin(self, identity: Mapping[str, object]) -> None:
        """Note what the parts are of. Raises OtherJob where there are parts of something else."""
        path = self.folder / _JOB_FILE
        # A job that stored nothing has nothing to lose.
        if path.is_file() and self.done():
            found = differences(json.loads(path.read_text(encoding="utf-8")), dict(identity))
            if found:
                raise OtherJob(
                    f"{self.folder} holds a job that can't be continued with these settings: {'; '.join(found)}; "
                    "give those it was begun with, or begin anew by --overwrite"
                )
            return
        write_durably(path, json.dumps(identity, ensure_ascii=False, indent=2).encode("utf-8"))

    def done(self) -> list[int]:
        """The numbers of the windows that are there, ascending."""
        return sorted(int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.arrow"))

    def write(self, window: int, table: pa.Table, about: PartAbout) -> None:
        """Store a window; once this returns, it is there for good."""
        words = json.dumps(asdict(about), ensure_ascii=False).encode("utf-8")
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata({_ABOUT: words})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        write_durably(self._path(window), sink.getvalue())

    def read(self, window: int) -> pa.Table:
        """A window's rows, mapped from the file."""
        return self._open(window).replace_schema_metadata(None)

    def about(self, window: int) -> PartAbout:
        """A window's figures."""
        raw = json.loads(self._open(window).schema.metadata[_ABOUT])
        raw["bad"] = [BadRecord(**item) for item in raw["bad"]]
        return PartAbout(**raw)

    def records_sha256(self, window: int) -> str:
        """The hash of the records that a window was read from."""
        return self.about(window).records_sha256

    def clear(self) -> None:
        """Throw the parts away; the lock stays."""
        for path in self.folder.iterdir():
            if path.name != _LOCK_FILE:
                path.unlink()

    def remove(self) -> None:
        """The output is whole, or thrown away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that writes here. Raises OutputBusy at once where another one is.

        The kernel lets go of the lock with its process, however that ends.
        """
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / _LOCK_FILE).open("a", encoding="ascii") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise OutputBusy(f"another process writes {self.folder}; wait for it, or end it") from error
                # Who had it may have finished, and removed the folder, between our opening the file and locking it.
                if not _is_there(self.folder / _LOCK_FILE, lock.fileno()):
                    continue
                yield
                return

    def _open(self, window: int) -> pa.Table:
        with pa.memory_map(str(self._path(window))) as mapped:
            return pa.ipc.open_file(mapped).read_all()

    def _path(self, window: int) -> Path:
        return self.folder / f"part-{window:08d}.arrow"


def write_durably(path: Path, content: bytes | pa.Buffer) -> None:
    """A file that is there whole or not at all, even where the machine loses power."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with unfinished.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    publish(unfinished, path)


def publish(unfinished: Path, path: Path) -> None:
    """Give a synced file its name, for good."""
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
