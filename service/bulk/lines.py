"""Records of files that are read line by line: JSON lines, plain lines, CSV and TSV."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterator
from typing import IO, Literal

import orjson

from service.bulk.records import LINE_BYTES_MAX, BadRecord, Fields, Record, record_of
from service.errors import InvalidInput

# Of a disk, and of compressed files that are damaged or cut off.
READ_ERRORS = (OSError, EOFError, zlib.error)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Lines:
    """Records that are a line each; blank lines are none."""

    def __init__(self, stream: IO[bytes], kind: Literal["jsonl", "txt"], fields: Fields, name: str) -> None:
        self._stream, self._kind, self._fields, self._name = stream, kind, fields, name
        self._line = self._place = 0

    def __iter__(self) -> Iterator[Record | BadRecord]:
        while raw := self._next():
            found = self._read(raw)
            self._place += 1
            yield found

    def skip(self, count: int) -> int:
        """As Records says."""
        skipped = 0
        while skipped < count and self._next():
            skipped += 1
        self._place += skipped
        return skipped

    def _next(self) -> bytes:
        """The next line that is not blank, at most one byte more of it than a line may have; b"" at the end."""
        while raw := self._readline(LINE_BYTES_MAX + 1):
            self._line += 1
            if len(raw) > LINE_BYTES_MAX:
                rest = raw
                while rest and not rest.endswith(b"\n"):
                    rest = self._readline(LINE_BYTES_MAX)
            if self._line == 1:
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
            if not raw.isspace() and raw:
                return raw
        return b""

    def _readline(self, size: int) -> bytes:
        try:
            return self._stream.readline(size)
        except READ_ERRORS as error:
            raise InvalidInput(f"can't read {self._name} beyond line {self._line}: {error}") from error

    def _read(self, raw: bytes) -> Record | BadRecord:
        if len(raw) > LINE_BYTES_MAX:
            return BadRecord(self._line, f"the line has more than {LINE_BYTES_MAX} bytes")
        try:
            if self._kind == "txt":
                return Record(str(self._place), raw.rstrip(b"\r\n").decode("utf-8"), self._line)
            values = orjson.loads(raw)
        except UnicodeDecodeError as error:
            return BadRecord(self._line, f"byte {error.start + 1} of the line is not UTF-8")
        except orjson.JSONDecodeError as error:
            return BadRecord(self._line, f"not JSON ({error})")
        if not isinstance(values, dict):
            return BadRecord(self._line, "not a JSON object")
        return record_of(values, self._fields, self._place, self._line)


class Rows:
    """Rows of CSV or TSV; the first one names the columns. A quoted field may hold line ends."""

    def __init__(self, stream: IO[bytes], kind: Literal["csv", "tsv"], fields: Fields, name: str) -> None:
        # What is not UTF-8 comes through as halves of surrogate pairs, so that it spoils its own row alone.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        csv.field_size_limit(LINE_BYTES_MAX)
        self._rows = csv.reader(text, delimiter="\t" if kind == "tsv" else ",", strict=True)
        self._fields, self._name, self._place = fields, name, 0
        self._columns = self._next() or []
        for column in fields.names():
            if column not in self._columns:
                raise InvalidInput(
                    f"{name} has no column {column!r}; its first line names {', '.join(self._columns) or 'none'}"
                )

    def __iter__(self) -> Iterator[Record | BadRecord]:
        while (row := self._next()) is not None:
            found = self._read(row)
            self._place += 1
            yield found

    def skip(self, count: int) -> int:
        """As Records says."""
        skipped = 0
        while skipped < count and self._next() is not None:
            skipped += 1
        self._place += skipped
        return skipped

    def _next(self) -> list[str] | str | None:
        """The next row, or what is wrong with it, or None at the end; blank lines are no rows."""
        while True:
            try:
                row = next(self._rows, None)
            except csv.Error as error:
                return f"not a row of this format ({error})"
            except READ_ERRORS as error:
                raise InvalidInput(f"can't read {self._name} beyond line {self._rows.line_num}: {error}") from error
            if row is None or row:
                return row

    def _read(self, row: list[str] | str) -> Record | BadRecord:
        line = self._rows.line_num
        if isinstance(row, str):
            return BadRecord(line, row)
        if len(row) != len(self._columns):
            return BadRecord(line, f"{len(row)} fields, the first line names {len(self._columns)}")
        try:
            "".join(row).encode("utf-8")
        except UnicodeEncodeError:
            return BadRecord(line, "not UTF-8")
        return record_of(dict(zip(self._columns, row, strict=True)), self._fields, self._place, line)
