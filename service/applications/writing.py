"""Results as tab-separated lines, to a file or to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.errors import InvalidInput

_BREAKS = str.maketrans(dict.fromkeys("\t\n\r\x0b\x0c\x85\u2028\u2029", " "))


@contextmanager
def open_output(path: Path | None) -> Iterator[IO[str]]:
    """A file, replaced where it is there, or standard output. Raises InvalidInput where it can't be written."""
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
    except OSError as error:
        raise InvalidInput(f"can't write {path}: {error}") from error


def write_table(stream: IO[str], names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A line of names, and one a row. Tabs and line breaks within a text become blanks: a row is one line."""
    stream.write("\t".join(names) + "\n")
    for row in rows:
        stream.write("\t".join(_cell(value) for value in row) + "\n")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value).translate(_BREAKS)
