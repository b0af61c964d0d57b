"""Texts from files, one record at a time: JSON lines, Parquet, CSV, TSV and plain lines, compressed or not.

A record is a line that is not blank, or a row. One that can't be read is a record too, a BadRecord, so that the place
of a record does not depend on whether those before it were read or passed over.
"""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Literal, cast, get_args

from service.bulk.lines import Lines, Rows
from service.bulk.records import BadRecord, Fields, Record, Records
from service.errors import BadInputLine, InvalidInput

STDIN = "-"
Format = Literal["jsonl", "parquet", "csv", "tsv", "txt"]
Compression = Literal["gz", "zst"]
FORMATS: tuple[Format, ...] = get_args(Format)
_FORMAT_OF_SUFFIX: dict[str, Format] = {**{name: name for name in FORMATS}, "ndjson": "jsonl", "text": "txt"}


@contextmanager
def open_records(source: str | Path, fields: Fields | None = None, *, form: str | None = None) -> Iterator[Records]:
    """The records of a file, or of standard input where source is "-".

    form: such as "csv" or "jsonl.gz", where the name's ending does not say it.
    Raises InvalidInput where the file can't be read, has an unknown form, or lacks a column.
    """
    fields = fields or Fields()
    kind, compression = form_of(source, form)
    with ExitStack() as stack:
        yield _open(source, kind, compression, fields, stack)


def read_records(source: str | Path, fields: Fields | None = None, *, form: str | None = None) -> Iterator[Record]:
    """Every record of a file. Raises BadInputLine at the first that is bad, and what open_records does."""
    with open_records(source, fields, form=form) as records:
        for record in records:
            if isinstance(record, BadRecord):
                raise BadInputLine(source, record.line, record.reason)
            yield record


def form_of(source: str | Path, form: str | None = None) -> tuple[Format, Compression | None]:
    """The format of a file and its compression, by what is said of it, else by its name."""
    parts = (form or Path(source).name).lower().split(".")
    compression = cast(Compression, parts.pop()) if parts[-1] in get_args(Compression) else None
    kind = _FORMAT_OF_SUFFIX.get(parts[-1]) if parts else None
    if kind is None:
        raise InvalidInput(
            f"not known what {form or source} holds; say it by --format: {', '.join(FORMATS)}, "
            "with .gz or .zst where it is compressed"
        )
    if kind == "parquet" and (compression or str(source) == STDIN):
        raise InvalidInput("Parquet is read from a plain file: it is compressed inside, and its index is at its end")
    return kind, compression


def _open(
    source: str | Path, kind: Format, compression: Compression | None, fields: Fields, stack: ExitStack
) -> Records:
    try:
        if kind == "parquet":
            # Its package is needed by nobody who has other files.
            from service.bulk.parquet_rows import open_parquet

            return open_parquet(Path(source), fields)
        stream = _bytes_of(source, compression, stack)
    except OSError as error:
        raise InvalidInput(f"can't read {source}: {error}") from error
    if kind == "csv" or kind == "tsv":
        return Rows(stream, kind, fields, str(source))
    return Lines(stream, kind, fields, str(source))


def _bytes_of(source: str | Path, compression: Compression | None, stack: ExitStack) -> IO[bytes]:
    plain: IO[bytes] = sys.stdin.buffer if str(source) == STDIN else stack.enter_context(Path(source).open("rb"))  # noqa: SIM115
    if compression == "gz":
        return cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=plain, mode="rb")))
    if compression == "zst":
        # Parquet's package brings it.
        import pyarrow as pa

        return io.BufferedReader(stack.enter_context(pa.CompressedInputStream(plain, "zstd")), 1 << 20)
    return plain
