"""The command line: python -m service serve | embed | merge | mine | dedup | cluster | index | search | check | …"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Callable
from typing import Annotated, ParamSpec

import typer

from service.applications.commands import cluster, dedup, mine
from service.applications.search_commands import index, search
from service.bulk.command import embed, merge
from service.errors import Me5Error
from service.settings import PREFIX, load_settings
from service.triton_config import AcceleratorPrecision, Variant

P = ParamSpec("P")

app = typer.Typer(
    help="Serve Multilingual E5 text embeddings. Settings are ME5_* variables; `check` prints them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def plain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """One line on stderr and exit code 2 for the errors that are ours; a traceback is for faults of the code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except Me5Error as error:
            print(f"me5: {error.message}", file=sys.stderr)
            raise typer.Exit(2) from error

    return wrapped


@app.command()
@plain_errors
def serve() -> None:
    """Start the gateway; SIGTERM drains it."""
    from service.server import run

    run(load_settings())


@app.command()
@plain_errors
def check() -> None:
    """Print the settings in force, open the model as `serve` would, and compare it with its golden vectors."""
    from service.ready import opened

    settings = load_settings()
    for name, value in settings.model_dump().items():
        print(f"{PREFIX}{name.upper()}={value}")

    async def prove() -> dict[str, str]:
        async with opened(settings) as embedder:
            assert embedder.memory is not None
            peak = f"{embedder.memory.total // 2**20} MiB"
            return {**embedder.about(), "golden_cosine": f"{embedder.proof_cosine:.6f}", "memory_peak_at_most": peak}

    print(json.dumps(asyncio.run(prove()), indent=2))


app.command()(plain_errors(embed))
app.command()(plain_errors(merge))
for command in (mine, dedup, cluster, index, search):
    app.command()(plain_errors(command))


@app.command()
@plain_errors
def pull(
    source: Annotated[str, typer.Argument(help="a published repository, or a local folder in its layout")],
    published: Annotated[
        str | None, typer.Option("--as", help="for a folder: which published checkpoint it holds")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="commit, tag or branch of the repository")] = None,
) -> None:
    """Fetch a published checkpoint's ONNX files into the model repository, with spec.json and golden.json."""
    from service.pull import pull as pull_model

    folder = pull_model(source, load_settings().model_repo, published=published, revision=revision)
    print(f"{folder} is ready: ME5_MODEL={folder.parent.name} python -m service serve")


@app.command("triton-config")
@plain_errors
def triton_config(
    model: Annotated[str, typer.Argument(help="NAME or NAME/VERSION, or a published checkpoint not yet pulled")],
    variant: Annotated[Variant, typer.Option(help="which file Triton opens, and by what")] = "onnx",
    precision: Annotated[AcceleratorPrecision | None, typer.Option(help="of tensorrt-accelerator")] = None,
    threads: Annotated[int, typer.Option(help="of ONNX Runtime on a CPU; 0 takes one a core")] = 0,
    write: Annotated[bool, typer.Option("--write", help="into the model's folder, over the one there")] = False,
) -> None:
    """Print the config.pbtxt with which NVIDIA Triton serves a model of the repository, or write it there."""
    from service.model import shelf_of
    from service.triton_config import render, write_config

    folder, spec = shelf_of(model, load_settings().model_repo)
    text = render(spec, variant, precision=precision, threads=threads)
    if write:
        print(write_config(folder, text))
    else:
        print(text, end="")


if __name__ == "__main__":
    app()
