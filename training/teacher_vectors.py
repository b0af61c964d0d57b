"""The English teacher's vectors of English texts, each computed when it is first asked for and kept in a file.

A translation has as many partners as there are languages, and training meets a text again and again; the teacher reads
it once. What a file holds stays as it is, so a run that was stopped goes on with the same vectors.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.encoder import chunk_by_length
from training.starting_model import StartingModel
from training.token_store import TokenStore

# Padded tokens that the teacher reads at a time.
CHUNK_TOKENS = 1024


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
        shape = (len(readable) + 1, teacher.bert.config.hidden_size)
        mode = "r+" if path.is_file() else "w+"
        # A new file holds zeros, and takes no room on disk before they are overwritten.
        self._rows = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=shape)

    def of(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """The vectors of some texts, float32[B, H], to three digits, as they are kept."""
        rows = self._row_of[numbers]
        unread = np.unique(numbers[~self._rows[rows].any(axis=1)])
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
