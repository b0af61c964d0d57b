"""The command line: python -m service serve | embed | merge | mine | dedup | cluster | index | search | check | …"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from service.applications.commands import cluster, dedup, mine
from service.applications.search_commands import index, search
from service.batching import Lane
from service.bulk.command import embed, merge
from service.engine_start import Started
from service.errors import KeysError, Me5Error
from service.listening import bind
from service.settings import PREFIX, exposure, load_settings
from service.triton_config import AcceleratorPrecision, Variant

P = ParamSpec("P")

app = typer.Typer(
    help="Serve Multilingual E5 text embeddings. Settings are ME5_* variables; `check` prints them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


keys_app = typer.Typer(help="The keys in ME5_KEYS_FILE; a running gateway takes a change up within seconds.")
app.add_typer(keys_app, name="keys", no_args_is_help=True)


def plain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """One line on stderr and exit code 2 for the errors that are ours; a traceback is for faults of the code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except Me5Error as error:
            print(f"me5: {error.message}", file=sys.stderr)
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = error.filename or "where the command writes"
            print(f"me5: no space left: {where}; make room and type the same command again", file=sys.stderr)
            raise typer.Exit(2) from error

    return wrapped


@app.command()
@plain_errors
def serve(context: typer.Context) -> None:
    """Start the gateway; SIGTERM drains it."""
    started: Started | None = context.obj
    settings = load_settings()
    listener = bind(settings.host, settings.port)
    if started is None:
        from service.server import run

        run(settings, listener=listener)
        return
    # The engine opens while the server's modules are read.
    from service.head_start import head_start

    open_host = head_start(settings, started)
    from service.server import run

    run(settings, open_host, listener)


@app.command()
@plain_errors
def check() -> None:
    """Print the settings in force, open the model as `serve` would, and compare it with its golden vectors."""
    from service.gate import open_gate
    from service.metrics import Metrics
    from service.ready import opened
    from service.tls import open_certificate

    settings = load_settings()
    for name, value in settings.model_dump().items():
        print(f"{PREFIX}{name.upper()}={value}")
    if warning := exposure(settings):
        print(f"me5: {warning}", file=sys.stderr)
    open_certificate(settings)
    if settings.needs_keys:
        open_gate(settings, Metrics())

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


@keys_app.command("add")
@plain_errors
def add_key(
    name: Annotated[str, typer.Argument(help="whose key it is: letters, digits, - and _; /metrics shows it")],
    tokens_per_minute: Annotated[int | None, typer.Option(help="of the model's tokens; without it, no limit")] = None,
    burst_tokens: Annotated[int | None, typer.Option(help="at once; without it, those of a minute")] = None,
    lane: Annotated[Lane | None, typer.Option(help="the only one its requests may use")] = None,
    expires: Annotated[str | None, typer.Option(help="its last day, 2027-12-31, in UTC")] = None,
) -> None:
    """Make a key, print it, and write its hash into the file. It can't be shown again."""
    from service.keys import digest_of, entry_of, new_secret, with_key
    from service.keys_file import HEADING, rewrite

    path = _keys_file()
    secret = new_secret()
    given = {"tokens_per_minute": tokens_per_minute, "burst_tokens": burst_tokens, "lane": lane, "expires": expires}
    entry = entry_of(name, {"sha256": digest_of(secret.encode()).hex(), **given})
    rewrite(path, lambda text: with_key(text, name, entry), new=HEADING)
    print(f"key {name} is in {path}; this is the only time it is shown:", file=sys.stderr)
    print(secret)


@keys_app.command("list")
@plain_errors
def list_keys() -> None:
    """The names in the file, with their limits; the keys themselves nobody has."""
    from service.keys_file import keys_in, read_file

    path = _keys_file()
    for key in keys_in(read_file(path), path):
        print(key.describe(time.time()))


@keys_app.command("remove")
@plain_errors
def remove_key(name: Annotated[str, typer.Argument(help="as `list` shows it")]) -> None:
    """Take a key out of the file; it is refused within seconds."""
    from service.keys import without_key
    from service.keys_file import rewrite

    rewrite(_keys_file(), lambda text: without_key(text, name))


def _keys_file() -> Path:
    path = load_settings().keys_file
    if path is None:
        raise KeysError("ME5_KEYS_FILE is not set; ME5_KEYS_FILE=keys.toml python -m service keys …")
    return path


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
