"""What a teacher said of queries with passages, kept on disk: no pair is read twice, whoever asks for it again."""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import BadTrainingData

Pair = tuple[str, str]

_TABLES = """
CREATE TABLE IF NOT EXISTS teachers (number INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS scores (
    teacher INTEGER NOT NULL, query INTEGER NOT NULL, passage INTEGER NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (teacher, query, passage)
) WITHOUT ROWID;
"""


class ScoreCache:
    """The scores of one teacher in a file of many. Texts are known by 64 bits of their hash each."""

    def __init__(self, database: sqlite3.Connection, teacher: str) -> None:
        """teacher: what its scores depend on, see cross_encoder.identity_of."""
        self._database = database
        database.executescript(_TABLES)
        with database:
            database.execute("INSERT OR IGNORE INTO teachers (identity) VALUES (?)", (teacher,))
        (self._teacher,) = database.execute("SELECT number FROM teachers WHERE identity = ?", (teacher,)).fetchone()

    def known(self, pairs: Iterable[Pair]) -> NDArray[np.float32]:
        """Scores of queries with passages, NaN where there is none yet: float32[N]."""
        find = "SELECT score FROM scores WHERE teacher = ? AND query = ? AND passage = ?"
        found = (
            self._database.execute(find, (self._teacher, key_of_text(query), key_of_text(passage))).fetchone()
            for query, passage in pairs
        )
        return np.array([np.nan if row is None else row[0] for row in found], dtype=np.float32)

    def add(self, pairs: Sequence[Pair], scores: NDArray[np.float32]) -> None:
        """Keep them, on disk when this returns."""
        rows = [
            (self._teacher, key_of_text(query), key_of_text(passage), float(score))
            for (query, passage), score in zip(pairs, scores, strict=True)
        ]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)


@contextmanager
def open_cache(path: Path, teacher: str) -> Iterator[ScoreCache]:
    """Open the file, or make it. Raises BadTrainingData where it is no cache, or the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    try:
        yield ScoreCache(database, teacher)
    except sqlite3.Error as error:
        raise BadTrainingData(
            f"the teacher's scores in {path} can't be read or written: {error}; make room, or remove the file and "
            "score again"
        ) from error
    finally:
        database.close()


def key_of_text(text: str) -> int:
    """64 bits of a text's hash, as a signed number. Unlike the key that pairs are told apart by, case counts."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
