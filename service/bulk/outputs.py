"""Files of vectors: Parquet, NumPy's .npy, safetensors; written a window at a time, so that size costs no memory.

The two that hold numbers alone have the ids, and what else was asked for, in FILE.rows.jsonl, a line for each row.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from service.api.encoding import Dtype, Vectors
from service.bulk.job import Column, Kind, kind_of
from service.bulk.parts import publish

ROWS_A_READ = 8192
VECTOR, ID = "vector", "id"
# The one tensor of a safetensors file.
TENSOR = "vectors"
_ARROW: dict[Dtype, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
_NUMPY: dict[Dtype, str] = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
_SAFETENSORS: dict[Dtype, str] = {"float32": "F32", "float16": "F16", "int8": "I8"}
_COLUMNS: dict[Column, pa.DataType] = {"text": pa.string(), "tokens": pa.int32(), "truncated": pa.bool_()}


@dataclass(frozen=True)
class Layout:
    """What a file of vectors holds. about: of the vectors, for its readers; texts only, as these formats want."""

    rows: int
    dimension: int
    dtype: Dtype
    columns: tuple[Column, ...]
    about: dict[str, str]

    @property
    def numpy_dtype(self) -> str:
        """NumPy's name of the components' type."""
        return _NUMPY[self.dtype]

    def schema(self) -> pa.Schema:
        """The columns of a window's rows, and of a Parquet file."""
        vector = pa.list_(_ARROW[self.dtype], self.dimension)
        return pa.schema([(ID, pa.string()), (VECTOR, vector), *((name, _COLUMNS[name]) for name in self.columns)])


def table_of(layout: Layout, ids: list[str], vectors: Vectors, columns: Mapping[Column, Sequence[object]]) -> pa.Table:
    """A window's rows. vectors: [N, D] in the layout's type."""
    memory = pa.py_buffer(np.ascontiguousarray(vectors))
    flat = pa.Array.from_buffers(_ARROW[layout.dtype], vectors.size, [None, memory])
    arrays = [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(flat, layout.dimension)]
    arrays += [pa.array(columns[name], _COLUMNS[name]) for name in layout.columns]
    return pa.Table.from_arrays(arrays, schema=layout.schema())


def write_output(path: Path, layout: Layout, tables: Iterable[pa.Table]) -> None:
    """The file of vectors from its windows' rows in order; there whole or not at all."""
    kind = kind_of(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    if kind == "parquet":
        with unfinished.open("wb") as stream:
            _write_parquet(stream, layout, tables)
            _sync(stream)
    else:
        rows = rows_file(path)
        beside = rows.with_name(f".{rows.name}.unfinished")
        with unfinished.open("wb") as stream, beside.open("wb") as lines:
            stream.write(header_of(kind, layout))
            for table in tables:
                for chunk in table.column(VECTOR).chunks:
                    stream.write(chunk.flatten().to_numpy(zero_copy_only=True).data)
                others = table.drop_columns([VECTOR]).to_pylist()
                lines.write(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in others))
            _sync(stream)
            _sync(lines)
        publish(beside, rows)
    publish(unfinished, path)


def rows_file(path: Path) -> Path:
    """Where the ids of a .npy or a safetensors file are."""
    return path.with_name(f"{path.name}.rows.jsonl")


def header_of(kind: Kind, layout: Layout) -> bytes:
    """What comes before the numbers of a .npy or a safetensors file."""
    shape = (layout.rows, layout.dimension)
    if kind == "npy":
        stream = io.BytesIO()
        about = {"descr": _NUMPY[layout.dtype], "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, about)
        return stream.getvalue()
    size = layout.rows * layout.dimension * np.dtype(_NUMPY[layout.dtype]).itemsize
    tensor = {"dtype": _SAFETENSORS[layout.dtype], "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": layout.about, TENSOR: tensor}, ensure_ascii=False).encode("utf-8")
    # The numbers begin at a multiple of eight; blanks at the end are the format's own way to that.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def layout_of(identity: Mapping[str, object], rows: int = 0) -> Layout:
    """What the output of a job holds. identity: the job's."""
    model, columns = cast(dict[str, object], identity["model"]), cast(list[Column], identity["columns"])
    dtype = cast(Dtype, identity["dtype"])
    about = {"role": identity["role"], "instruction": identity["instruction"], "dtype": dtype, **model}
    words = {"me5": json.dumps(about, ensure_ascii=False)}
    return Layout(rows, cast(int, model["dimension"]), dtype, tuple(columns), words)


def read_windows(path: Path, layout: Layout) -> Iterator[pa.Table]:
    """The rows of a file that was written here, some at a time: of Parquet, a window."""
    kind = kind_of(path)
    if kind == "parquet":
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group).replace_schema_metadata(None)
        return
    with rows_file(path).open("rb") as lines, path.open("rb") as stream:
        stream.seek(len(header_of(kind, layout)))
        for start in range(0, layout.rows, ROWS_A_READ):
            count = min(ROWS_A_READ, layout.rows - start)
            vectors = np.fromfile(stream, layout.numpy_dtype, count * layout.dimension).reshape(count, -1)
            others = [orjson.loads(line) for line in itertools.islice(lines, count)]
            columns: dict[Column, list[object]] = {name: [row[name] for row in others] for name in layout.columns}
            yield table_of(layout, [row[ID] for row in others], vectors, columns)


def _write_parquet(stream: IO[bytes], layout: Layout, tables: Iterable[pa.Table]) -> None:
    schema = layout.schema().with_metadata(layout.about)
    # Components of vectors look like noise to a compressor; what is said of texts does not.
    packed = {name: "zstd" if name != VECTOR else "none" for name in schema.names}
    packed[f"{VECTOR}.list.element"] = packed.pop(VECTOR)
    with pq.ParquetWriter(stream, schema, compression=packed, use_dictionary=False, write_statistics=[ID]) as writer:
        for table in tables:
            if table.num_rows:
                writer.write_table(table.replace_schema_metadata(layout.about), row_group_size=table.num_rows)


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
