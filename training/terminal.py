"""What the commands of training share: the data folder, and errors as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.errors import Me5Error

# A run that was stopped, told apart from one that failed: a Makefile must not go on with it.
STOPPED = 3

# Of packages that are not of the extra `training`.
EXTRAS = {"mteb": "mteb", "openvino": "openvino", "onnxruntime": "cpu"}

Config = Annotated[Path, typer.Argument(help="A model's TOML file, see training/configs/.")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="ME5_DATA", help="Folder with MANIFEST.json, train/ and eval/.", show_default=False),
]
Pairs = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the sources; data/NAME/STAGE by default, for the second stage data/NAME/mined where that is.",
        show_default=False,
    ),
]
Mined = Annotated[
    Path | None,
    typer.Option("--pairs", help="Folder of the mined sources; data/NAME/mined by default.", show_default=False),
]


# Typer wants enumerations for closed choices.
class StageName(StrEnum):
    pretrain = "pretrain"
    finetune = "finetune"
    instruct = "instruct"


def data_folder(given: Path | None) -> Path:
    """The data folder, or the sentence that says how to name one."""
    from training.errors import DataError

    if given is None:
        raise DataError("no data folder; give --data FOLDER, or set ME5_DATA")
    if not given.is_dir():
        raise DataError(f"the data folder {given} does not exist; give --data FOLDER, or set ME5_DATA")
    return given


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print what the user can mend as one line, and exit with 2; anything else keeps its traceback."""
    try:
        yield
    except Me5Error as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(2) from error
    except ModuleNotFoundError as error:
        # A missing module of our own is a fault of the code, not of the installation.
        if error.name is None or error.name.split(".")[0] in ("training", "service"):
            raise
        extra = EXTRAS.get(error.name.split(".")[0], "training")
        typer.echo(f"error: {error.name} is not installed; pip install -e '.[{extra}]'", err=True)
        raise typer.Exit(2) from error
