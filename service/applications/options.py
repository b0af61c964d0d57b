"""What the commands on files of texts ask for alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.errors import PackageMissing

TextField = Annotated[str, typer.Option(help="the field, or column, that holds the text; plain lines have none")]
IdField = Annotated[str | None, typer.Option(help="the field that holds an id; without it lines are numbered")]
Format = Annotated[
    str | None, typer.Option("--format", help="jsonl, csv, tsv, txt or parquet, where the name does not end so")
]
VectorsFile = Annotated[
    Path | None, typer.Option("--vectors", help="the file's vectors, as `embed --output` wrote them (.npy, .parquet)")
]
Output = Annotated[Path | None, typer.Option("--to", help="a file; without it, standard output")]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports that need an extra. Raises PackageMissing where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise PackageMissing(str(error.name), name) from error
