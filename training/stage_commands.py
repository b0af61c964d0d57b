"""The commands that train: from a backbone to a checkpoint."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from training.terminal import STOPPED, Config, Data, Mined, Pairs, StageName, data_folder, one_line_errors

commands = typer.Typer()

Out = Annotated[Path | None, typer.Option(help="Folder of this run; runs/NAME/STAGE by default.", show_default=False)]
Start = Annotated[
    Path | None,
    typer.Option(help="The checkpoint to begin with; runs/NAME/pretrain/latest by default.", show_default=False),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]


@commands.command()
def bootstrap(
    config: Annotated[Path, typer.Argument(help="TOML file, see training/configs/.")],
    data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of this run; runs/ and the name of CONFIG by default.", show_default=False),
    ] = None,
    resume: Resume = False,
) -> None:
    """Make a small model from nothing: its tokenizer, token vectors and layers."""
    with one_line_errors():
        folder = data_folder(data)
        from training.bootstrap import bootstrap as run_bootstrap
        from training.bootstrap_config import load_config

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        run = out or Path("runs") / config.stem
        checkpoint = run_bootstrap(settings, data=folder, out=run, resume=resume)
    if checkpoint is None or checkpoint.name != f"step_{settings.distil.steps:06d}":
        typer.echo(f"stopped before its end; continue with --resume --out {run}", err=True)
        raise typer.Exit(STOPPED)
    typer.echo(f"{checkpoint}")


@commands.command()
def pretrain(config: Config, pairs: Pairs = None, out: Out = None, resume: Resume = False) -> None:
    """Stage 1: contrastive pre-training on weak pairs with in-batch negatives. Under torchrun, on many processes."""
    _run_stage(StageName.pretrain, config, pairs, out, None, resume)


@commands.command()
def teach(
    config: Config,
    start: Annotated[
        Path | None,
        typer.Option(
            help="An encoder, or a re-ranker; teach.start, or the model's backbone, by default.", show_default=False
        ),
    ] = None,
    pairs: Mined = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of this run; runs/NAME/teach by default.", show_default=False)
    ] = None,
    resume: Resume = False,
) -> None:
    """Train a cross-encoder on mined pairs, whose ranking the second stage then learns. Under torchrun, on many
    processes.
    """
    with one_line_errors():
        from training.config import load_config
        from training.teach import train_teacher

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        run = out or Path("runs") / settings.name / "teach"
        mined = pairs or Path("data") / settings.name / "mined"
        begin_with = start or (Path(settings.teach.start) if settings.teach.start else None)
        finished = train_teacher(settings, pairs=mined, out=run, start=begin_with, resume=resume)
    if not finished:
        typer.echo(f"stopped before its end; continue with --resume --out {run}", err=True)
        raise typer.Exit(STOPPED)
    typer.echo(f"{run / 'latest'}")


@commands.command()
def finetune(
    config: Config,
    start: Start = None,
    pairs: Pairs = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Stage 2: labelled pairs with hard negatives and, where they are scored, a cross-encoder's ranking of them."""
    _run_stage(StageName.finetune, config, pairs, out, start, resume)


@commands.command()
def instruct(
    config: Config,
    start: Start = None,
    pairs: Pairs = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Stage 2 of an instruct model: queries carry the instruction of their task, and synthetic pairs join."""
    _run_stage(StageName.instruct, config, pairs, out, start, resume)


def _run_stage(
    stage: StageName, config: Path, pairs: Path | None, out: Path | None, start: Path | None, resume: bool
) -> None:
    with one_line_errors():
        from training.config import load_config
        from training.stages import train_stage

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        run = out or Path("runs") / settings.name / stage
        if stage is not StageName.pretrain:
            start = start or Path("runs") / settings.name / "pretrain" / "latest"
        finished = train_stage(
            settings,
            stage.value,
            pairs=pairs or pairs_of(settings.name, stage),
            out=run,
            start=start,
            resume=resume,
        )
    if not finished:
        typer.echo(f"stopped before its end; continue with --resume --out {run}", err=True)
        raise typer.Exit(STOPPED)
    typer.echo(f"{run / 'latest'}")


def pairs_of(name: str, stage: StageName) -> Path:
    """Where a stage's pairs are: the second stage's are mined, unless nobody has."""
    prepared, mined = Path("data") / name / stage, Path("data") / name / "mined"
    return mined if stage is not StageName.pretrain and mined.is_dir() else prepared
