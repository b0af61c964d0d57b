"""A search index in a folder: passages, their vectors, what finds the nearest of them, and what model made them.

manifest.json    what is in force; written last, so that an addition that was cut short is as if it never was
passages.db      SQLite: number, id, text
vectors.f32      float32[count, D], row by row
lock             held by who adds
nearest-*.faiss  a graph or cells over the vectors, where there are many
words-*/         BM25 over the passages' words, where asked for
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import IndexUnusable
from service.model import Model
from service.recipe.spec import SPEC_FILE, file_sha256

Vectors = NDArray[np.float32]
FORMAT = 1
MANIFEST, PASSAGES, VECTORS, LOCK = "manifest.json", "passages.db", "vectors.f32", "lock"
# SQLite takes 32,766 values a statement.
LOOKED_UP = 10_000


@dataclass(frozen=True)
class Manifest:
    """model, spec_sha256: the version whose vectors these are, by name and by its spec, which has every file's hash.

    dimension: of the vectors.   count: of the passages.   nearest: the file over the vectors, None for none.
    words: the folder of BM25, None for none.
    """

    model: str
    spec_sha256: str
    dimension: int
    count: int = 0
    nearest: str | None = None
    words: str | None = None


@dataclass(frozen=True)
class Passage:
    """id: as its file gave it, or its place in the index.   text: without prompt."""

    id: str
    text: str


def manifest_for(model: Model) -> Manifest:
    """That of an empty index of this model's vectors."""
    spec_sha256 = file_sha256(model.folder / SPEC_FILE)
    return Manifest(f"{model.spec.name}/{model.version}", spec_sha256, model.spec.dimension)


class PassageIndex:
    """What lies in a folder, as of its manifest."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> PassageIndex:
        """Raises IndexUnusable where there is none, or its manifest can't be read."""
        path = folder / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                raise IndexUnusable(f"{path} is not of format {FORMAT}, the one this version reads; index again")
            manifest = Manifest(**found)
        except FileNotFoundError as error:
            raise IndexUnusable(
                f"{folder} holds no index; make one: python -m service index FILE --to {folder}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IndexUnusable(f"can't read {path}: {error}; remove {folder} and index again") from error
        needed = manifest.count * manifest.dimension * 4
        there = (folder / VECTORS).stat().st_size if (folder / VECTORS).is_file() else 0
        if there < needed or not (folder / PASSAGES).is_file():
            raise IndexUnusable(f"{folder} is damaged: {VECTORS} has {there} of {needed} bytes; index again")
        return cls(folder, manifest)

    def check_model(self, model: Model) -> None:
        """Raises IndexUnusable where the index's vectors are not this model's: they could not be compared."""
        ours, theirs = manifest_for(model), self.manifest
        if ours.spec_sha256 != theirs.spec_sha256:
            raise IndexUnusable(
                f"{self.folder} holds vectors of {theirs.model} ({theirs.spec_sha256[:12]}…), and the model is "
                f"{ours.model} ({ours.spec_sha256[:12]}…); set ME5_MODEL={theirs.model}, or index again"
            )

    def vectors(self) -> Vectors:
        """float32[count, D], mapped from its file."""
        shape = (self.manifest.count, self.manifest.dimension)
        return np.memmap(self.folder / VECTORS, dtype=np.float32, mode="r", shape=shape)

    def passages(self, numbers: Sequence[int]) -> list[Passage]:
        """The passages of these numbers, in their order."""
        found: dict[int, Passage] = {}
        with closing(self._connect()) as base:
            for start in range(0, len(numbers), LOOKED_UP):
                part = list(numbers[start : start + LOOKED_UP])
                marks = ",".join("?" * len(part))
                rows = base.execute(f"SELECT number, id, text FROM passages WHERE number IN ({marks})", part)
                found.update({number: Passage(name, text) for number, name, text in rows})
        return [found[number] for number in numbers]

    def texts(self) -> Iterator[str]:
        """All texts in order, read one after another."""
        with closing(self._connect()) as base:
            for (text,) in base.execute(
                "SELECT text FROM passages WHERE number < ? ORDER BY number", (self.manifest.count,)
            ):
                yield text

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.folder / PASSAGES}?mode=ro", uri=True)


class Addition:
    """Passages on their way into an index; in force once `finish` has written the manifest."""

    def __init__(self, index: PassageIndex, base: sqlite3.Connection) -> None:
        self._index, self._base = index, base
        self.count = index.manifest.count
        self._stream = (index.folder / VECTORS).open("r+b")
        # What an addition left behind that was cut short.
        self._stream.truncate(self.count * index.manifest.dimension * 4)
        self._stream.seek(0, os.SEEK_END)

    def known(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids the index has, those of this addition among them."""
        found: set[str] = set()
        for start in range(0, len(ids), LOOKED_UP):
            part = list(ids[start : start + LOOKED_UP])
            marks = ",".join("?" * len(part))
            found.update(name for (name,) in self._base.execute(f"SELECT id FROM passages WHERE id IN ({marks})", part))
        return found

    def add(self, ids: Sequence[str], texts: Sequence[str], vectors: Vectors) -> None:
        """Append passages with their unit vectors [N, D]; no id may be known."""
        rows = zip(range(self.count, self.count + len(ids)), ids, texts, strict=True)
        self._base.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
        self._stream.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self.count += len(ids)

    def finish(self) -> PassageIndex:
        """Make what was added safe on disk, and give the index as it is once `publish` has written its manifest."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._base.commit()
        return PassageIndex(self._index.folder, replace(self._index.manifest, count=self.count))

    def close(self) -> None:
        """Let go of the files; what was not finished is undone."""
        self._stream.close()
        self._base.close()


@contextmanager
def adding(folder: Path, model: Model) -> Iterator[Addition]:
    """An addition to a folder's index, which is begun where there is none. One process at a time.

    Raises IndexUnusable where it is another model's, or another process adds to it.
    """
    if folder.is_dir() and not (folder / LOCK).exists() and any(folder.iterdir()):
        raise IndexUnusable(f"{folder} holds other files and no index; give a folder that is new or empty")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise IndexUnusable(f"another process adds to {folder}; wait until it is done") from error
        if (folder / MANIFEST).exists():
            index = PassageIndex.open(folder)
            index.check_model(model)
        else:
            (folder / VECTORS).touch()
            index = PassageIndex(folder, manifest_for(model))
        base = sqlite3.connect(folder / PASSAGES)
        addition = Addition(index, base)
        try:
            base.execute(
                "CREATE TABLE IF NOT EXISTS passages (number INTEGER PRIMARY KEY, id TEXT UNIQUE, text TEXT) STRICT"
            )
            base.execute("DELETE FROM passages WHERE number >= ?", (index.manifest.count,))
            yield addition
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise
        finally:
            addition.close()


def publish(index: PassageIndex) -> None:
    """Put an index's manifest in force at once, and remove what the last one named and this one does not."""
    path = index.folder / MANIFEST
    fresh = path.with_suffix(".new")
    text = json.dumps({"format": FORMAT, **asdict(index.manifest)}, indent=2)
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
    for old in [*index.folder.glob("nearest-*.faiss"), *index.folder.glob("words-*")]:
        if old.name not in (index.manifest.nearest, index.manifest.words):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
