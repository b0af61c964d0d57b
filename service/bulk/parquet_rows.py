"""Records of a Parquet file, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.records import BadRecord, Fields, Record, record_of
from service.errors import InvalidInput

ROWS_A_BATCH = 512


class ParquetRows:
    """Rows of a Parquet file; of its columns only those that are asked for are read."""

    def __init__(self, file: pq.ParquetFile, fields: Fields, name: str) -> None:
        self._file, self._fields, self._place = file, fields, 0
        schema = file.schema_arrow
        for column in fields.names():
            if schema.get_field_index(column) < 0:
                raise InvalidInput(f"{name} has no column {column!r}; it has {', '.join(schema.names)}")
        for column in filter(None, (fields.text, fields.title)):
            if not _is_text(schema.field(column).type):
                raise InvalidInput(f"{name}: column {column!r} is {schema.field(column).type}, not a text")

    def __iter__(self) -> Iterator[Record | BadRecord]:
        end = 0
        for group in range(self._file.num_row_groups):
            start, end = end, end + self._file.metadata.row_group(group).num_rows
            # Whole groups are passed over by the file's index.
            if end <= self._place:
                continue
            for batch in self._file.iter_batches(ROWS_A_BATCH, row_groups=[group], columns=self._fields.names()):
                wanted = batch.slice(max(0, self._place - start))
                start += batch.num_rows
                for values in wanted.to_pylist():
                    found = record_of(values, self._fields, self._place, self._place + 1)
                    self._place += 1
                    yield found

    def skip(self, count: int) -> int:
        """As Records says."""
        skipped: int = min(count, self._file.metadata.num_rows - self._place)
        self._place += skipped
        return skipped


def open_parquet(path: Path, fields: Fields) -> ParquetRows:
    """The rows of a file. Raises InvalidInput where it is no Parquet, or lacks a column."""
    try:
        return ParquetRows(pq.ParquetFile(path), fields, str(path))
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"can't read {path}: {error}") from error


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))
