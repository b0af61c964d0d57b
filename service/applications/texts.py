"""Files of texts, and the vectors of their lines: computed by the gateway's own engine, or read from a file."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.applications.origins import check_role
from service.asking import Ask
from service.bulk.reading import open_records
from service.bulk.records import BadRecord, Fields, Record
from service.errors import InvalidInput
from service.ready import opened
from service.recipe.pooling import l2_normalize
from service.recipe.prompts import InputType, Role, role_of

if TYPE_CHECKING:
    from service.embedder import Embedder
    from service.settings import Settings

Vectors = NDArray[np.float32]
# Vectors looked through at a time: 25 MB of 384 components.
BLOCK_ROWS = 16_384
# float16 has 11 bits of mantissa: what it stores of a unit vector is this close to length one.
UNIT_TOLERANCE = 1e-3
# How the Parquet file that `embed --output` writes names the column.
VECTOR_COLUMN = "vector"
# No one waits for an answer: a part of so many texts may take as long as it takes.
PART_TIMEOUT_S = 7 * 86_400.0


@dataclass(frozen=True)
class Texts:
    """A file's texts in order. lines: the line, or row, of each in the file, from 1."""

    source: str
    texts: list[str]
    lines: list[int]
    ids: list[str]

    def distinct(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of texts seen for the first time, int64[M], and which of these each row equals, int64[N]."""
        seen: dict[str, int] = {}
        places = np.fromiter((seen.setdefault(text, len(seen)) for text in self.texts), np.int64, len(self.texts))
        _, firsts = np.unique(places, return_index=True)
        return np.asarray(firsts, dtype=np.int64), places


def records_of(source: str, fields: Fields, form: str | None) -> Iterator[Record]:
    """The records of a file. Raises InvalidInput at the first that holds no text."""
    with open_records(source, fields, form=form) as records:
        for record in records:
            if isinstance(record, BadRecord):
                raise InvalidInput(f"{source}, line {record.line}: {record.reason}; mend the line or leave it out")
            yield record


def read_texts(source: str, fields: Fields, form: str | None) -> Texts:
    """All texts of a file, in memory. Raises InvalidInput where there is none, or one that is none."""
    found = list(records_of(source, fields, form))
    if not found:
        raise InvalidInput(f"{source} holds no text; give a file with one text a line, or a row")
    return Texts(source, [item.text for item in found], [item.line for item in found], [item.id for item in found])


def embed_files(
    settings: Settings, files: Sequence[Texts], use: InputType, vectors: Sequence[Path | None]
) -> list[Vectors]:
    """Unit vectors of each file's texts, [N, D]: read where there is a vectors file for it, else computed for this use.

    What is computed lies in a file of the temporary folder that is gone with this process.
    """
    read = [read_vectors(path, role_of(use)) if path else None for path in vectors]
    for path, part, item in zip(vectors, read, files, strict=True):
        if path is not None and part is not None:
            check_count(path, len(part), item.source, len(item.texts))
    if all(part is not None for part in read):
        return [part for part in read if part is not None]

    async def compute() -> list[Vectors]:
        async with opened(settings) as embedder:
            return [
                await embed(embedder, item.texts, use, item.source) if part is None else part
                for item, part in zip(files, read, strict=True)
            ]

    return asyncio.run(compute())


async def embed(embedder: Embedder, texts: Sequence[str], use: InputType, name: str) -> Vectors:
    """Unit vectors float32[N, D] of texts, in a mapped file. use: says their prompt.   name: for the line on stderr."""
    found = scratch(len(texts), embedder.model.spec.dimension)
    size = embedder.settings.max_inputs
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        ask = Ask([*part], role=role_of(use), input_type=use, timeout_s=PART_TIMEOUT_S)
        found[start : start + len(part)] = (await embedder.embed(ask)).vectors
        note(f"{name}: {start + len(part)} of {len(texts)} texts embedded")
    return found


def read_vectors(path: Path, role: Role) -> Vectors:
    """The unit vectors of a .npy or .parquet file, float32[N, D]; mapped where they can be.

    Raises InvalidInput where it is no such file, a row is zero or not finite, or it is known to be of another role.
    """
    check_role(path, role)
    try:
        rows = _parquet(path) if path.suffix == ".parquet" else np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"can't read vectors from {path}: {error}; give a .npy or .parquet file") from error
    if rows.ndim != 2 or rows.dtype.kind not in "fi":
        raise InvalidInput(f"{path} holds {rows.dtype} of shape {rows.shape}, not a row of numbers for each text")
    return unit_rows(rows, str(path))


def check_count(path: Path, rows: int, source: str, texts: int) -> None:
    """Raises InvalidInput where a vectors file can't be that of a file of texts."""
    if rows != texts:
        raise InvalidInput(
            f"{path} has {rows} vectors, {source} {texts} texts; "
            "they must be the vectors of this very file, in its order"
        )


def unit_rows(rows: NDArray[np.generic], name: str) -> Vectors:
    """Rows [N, D] as contiguous float32 of length one: themselves where they are that, else a mapped copy."""
    ready = rows.dtype == np.float32 and rows.flags.c_contiguous
    copy = None if ready else scratch(*rows.shape)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = np.asarray(rows[start : start + BLOCK_ROWS], dtype=np.float32)
        lengths = np.linalg.norm(block, axis=1)
        bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(bad):
            raise InvalidInput(f"{name}: vector {start + int(bad[0])} is zero or not finite; compute it again")
        if copy is None and np.abs(lengths - 1).max() > UNIT_TOLERANCE:
            copy = scratch(*rows.shape)
            copy[:start] = rows[:start]
        if copy is not None:
            copy[start : start + len(block)] = l2_normalize(block)
    return rows if copy is None else copy  # type: ignore[return-value]


def scratch(rows: int, dimension: int) -> Vectors:
    """Room for vectors in a nameless file: the system may write it out where memory is short."""
    with tempfile.TemporaryFile() as stream:
        return np.memmap(stream, dtype=np.float32, mode="w+", shape=(rows, dimension))


def _parquet(path: Path) -> NDArray[np.generic]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if VECTOR_COLUMN not in file.schema_arrow.names:
                raise InvalidInput(f"{path} has no column {VECTOR_COLUMN!r}")
            found: Vectors | None = None
            start = 0
            for batch in file.iter_batches(BLOCK_ROWS, columns=[VECTOR_COLUMN]):
                column = batch.column(0)
                values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
                if found is None:
                    found = scratch(file.metadata.num_rows, values.shape[1])
                found[start : start + len(values)] = values
                start += len(values)
    except pa.ArrowException as error:
        raise InvalidInput(f"can't read vectors from {path}: {error}") from error
    return np.empty((0, 0), dtype=np.float32) if found is None else found


def note(line: str) -> None:
    """A line about the progress, on stderr: stdout is for results."""
    print(f"me5: {line}", file=sys.stderr)
