"""Files of texts, record by record: every format, every kind of bad line, and places that stay what they are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.reading import open_records, read_records
from service.bulk.records import BadRecord, Fields, Record
from service.errors import BadInputLine, InvalidInput

FIELDS = Fields("body", id="key", title="title")
WANTED = [Record("7", "Hafen Der Hafen ist tief.", 1), Record("b", "東京の人口", 2), Record("c", 'a "b",\tc', 3)]
ROWS = [("7", "Hafen", "Der Hafen ist tief."), ("b", "", "東京の人口"), ("c", "", 'a "b",\tc')]


def written(folder: Path, name: str) -> Path:
    """The three rows in the format that the name's ending says."""
    path, kind = folder / name, name.split(".")[1]
    if kind == "parquet":
        columns = dict(zip(("key", "title", "body"), map(list, zip(*ROWS, strict=True)), strict=True))
        pq.write_table(pa.table({**columns, "other": [1, 2, 3]}), path, row_group_size=2)
        return path
    if kind == "jsonl":
        rows = [(int(key) if key.isdigit() else key, title or None, body) for key, title, body in ROWS]
        text = "".join(json.dumps(dict(zip(("key", "title", "body"), row, strict=True))) + "\n" for row in rows)
    else:
        mark = "\t" if kind == "tsv" else ","
        quoted = ([f'"{part.replace(chr(34), chr(34) * 2)}"' for part in row] for row in ROWS)
        text = "\r\n".join(mark.join(row) for row in (["key", "title", "body"], *quoted)) + "\r\n"
    content = text.encode("utf-8")
    if name.endswith(".gz"):
        content = gzip.compress(content)
    if name.endswith(".zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.tsv.gz", "a.parquet"])
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    found = list(read_records(written(tmp_path, name), FIELDS))
    # CSV counts the line that names the columns.
    offset = 1 if name.split(".")[1] in ("csv", "tsv") else 0
    assert found == [Record(item.id, item.text, item.line + offset) for item in WANTED]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.parquet"])
def test_a_record_that_was_passed_over_counts(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    with open_records(path, Fields("body")) as records:
        assert records.skip(1) == 1
        (second, third) = list(records)
    assert isinstance(second, Record)
    assert isinstance(third, Record)
    assert (second.id, second.text, third.id) == ("1", WANTED[1].text, "2")
    with open_records(path, Fields("body")) as records:
        assert records.skip(10**9) == 3


def test_plain_lines_are_texts_and_blank_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffeins\r\n\n  \nzwei \n".encode())
    assert list(read_records(path)) == [Record("0", "eins", 1), Record("1", "zwei ", 4)]


BAD_LINES = {
    b"{": "not JSON",
    b"[1]": "not a JSON object",
    b'{"id": 1}': "field 'text' is missing",
    b'{"text": null, "id": 1}': "field 'text' is null",
    b'{"text": "", "id": 1}': "the text is empty",
    b'{"text": "a", "id": true}': "field 'id' is of type bool",
    b'{"text": "\\ud800", "id": 1}': "not JSON",
    b'{"text": "\xff", "id": 1}': "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_told_with_its_number_and_spoils_no_other(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good", "id": 0}\n' + line + b'\n{"text": "good too", "id": 2}\n')
    with open_records(path, Fields(id="id")) as records:
        first, bad, last = list(records)
    assert (first, last) == (Record("0", "good", 1), Record("2", "good too", 3))
    assert isinstance(bad, BadRecord)
    assert bad.line == 2
    assert bad.reason.startswith(BAD_LINES[line])
    with pytest.raises(BadInputLine, match=r"line 2: .*--on-error skip"):
        list(read_records(path, Fields(id="id")))


def test_bad_rows_of_csv_spoil_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\n"two\nlines",1\nx,2,3\n\xff,4\nlast,5\n')
    with open_records(path, Fields(id="id")) as records:
        found = list(records)
    assert found == [
        Record("1", "two\nlines", 3),
        BadRecord(4, "3 fields, the first line names 2"),
        BadRecord(5, "not UTF-8"),
        Record("5", "last", 6),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"body\nx\n", "no column 'text'; its first line names body"),
        ("a.parquet", b"PAR1", "can't read"),
        ("a.docx", b"", "say it by --format: jsonl, parquet, csv, tsv, txt"),
        ("a.txt.gz", gzip.compress(b"one line\n" * 9, mtime=0)[:-9], "beyond line"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused_with_a_remedy(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=words):
        list(read_records(tmp_path / name))
