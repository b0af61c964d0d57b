"""The English teacher's vectors of English texts, each computed when it is first asked for and kept in a file.

A translation has as many partners as there are languages, and training meets a text again and again; the teacher reads
it once. What a file holds stays as it is, so a run that was stopped goes on with the same vectors.
"""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.encoder import chunk_by_length
from training.errors import TrainingError
from training.starting_model import StartingModel
from training.token_store import TokenStore

# Padded tokens that the teacher reads at a time.
CHUNK_TOKENS = 1024
# Of a unit vector in float16.
LENGTH_TOLERANCE = 0.01


class TeacherVectors:
    """Text numbers in, the teacher's unit vectors out."""

    def __init__(self, teacher: StartingModel, store: TokenStore, max_tokens: int, path: Path) -> None:
        """store: the texts in the teacher's tokens, empty where a text is not for the teacher.   path: of the file."""
        self._teacher, self._store, self._max_tokens = teacher, store, max_tokens
        self._lengths = np.minimum(store.lengths(), max_tokens)
        readable = np.flatnonzero(self._lengths)
        # Texts of which the teacher knows no token are one to it, and have the row behind the others.
        self._row_of = np.full(len(self._lengths), len(readable), dtype=np.int32)
        self._row_of[readable] = np.arange(len(readable), dtype=np.int32)
        self._rows = open_rows(path, (len(readable) + 1, teacher.bert.config.hidden_size))

    def of(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """The vectors of some texts, float32[B, H], to three digits, as they are kept."""
        rows = self._row_of[numbers]
        # Of a row that was half written when the power went, no length is left; one that was never written has none.
        lengths = np.linalg.norm(self._rows[rows].astype(np.float32), axis=1)
        unread = np.unique(numbers[np.abs(lengths - 1) > LENGTH_TOLERANCE])
        if len(unread):
            for chunk in chunk_by_length(self._lengths[unread] + 2, CHUNK_TOKENS):
                picked = unread[chunk]
                with torch.autocast("cpu", torch.bfloat16):
                    vectors = self._teacher.embed(self._store, picked, self._max_tokens)
                self._rows[self._row_of[picked]] = vectors.float().numpy()
        return torch.from_numpy(self._rows[rows].astype(np.float32))

    def flush(self) -> None:
        """Bring to the disk what was computed since."""
        self._rows.flush()


def open_rows(path: Path, shape: tuple[int, int]) -> np.memmap:
    """Map a file of float16 rows, a new one of zeros where there is none of this shape.

    A new file has its room on the disk from the start: a page that finds none later would kill the process without a
    word. Raises TrainingError where there is not enough.
    """
    if path.is_file():
        rows = np.lib.format.open_memmap(path, mode="r+")
        if rows.shape == shape and rows.dtype == np.float16:
            return rows
    unfinished = path.with_suffix(".unfinished")
    try:
        rows = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
        with unfinished.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        unfinished.replace(path)
    except OSError as error:
        size = 2 * shape[0] * shape[1]
        raise TrainingError(
            f"{path} can't be made, it needs {size} bytes: {error.strerror}; make room, and continue with --resume"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return rows
