"""The command line of training: `python -m training bootstrap | prepare | pretrain | export | …`.

Heavy packages are imported inside the commands, so that --help answers at once and without torch.
"""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.export_commands import commands as export_commands
from training.terminal import Data, data_folder, one_line_errors

cli = typer.Typer(
    name="python -m training",
    help="Train, export and evaluate Multilingual E5 models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Without a name: its commands stand beside the others.
cli.add_typer(export_commands)

# A run that was stopped, told apart from one that failed: a Makefile must not go on with it.
STOPPED = 3


# Typer wants enumerations for closed choices.
class StageName(StrEnum):
    pretrain = "pretrain"
    finetune = "finetune"


class ProtocolName(StrEnum):
    paper = "paper"
    mteb_current = "mteb-current"


class EngineChoice(StrEnum):
    onnx = "onnx"
    openvino = "openvino"


class PrecisionChoice(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


Model = Annotated[Path, typer.Argument(help="A model version (model_repo/NAME/VERSION) or a checkpoint folder.")]


Config = Annotated[Path, typer.Argument(help="A model's TOML file, see training/configs/.")]
Pairs = Annotated[
    Path | None,
    typer.Option(help="Folder of the prepared sources; data/NAME/STAGE by default.", show_default=False),
]
Out = Annotated[Path | None, typer.Option(help="Folder of this run; runs/NAME/STAGE by default.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]


@cli.command()
def bootstrap(
    config: Annotated[Path, typer.Argument(help="TOML file, see training/configs/.")],
    data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of this run; runs/ and the name of CONFIG by default.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
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
    if checkpoint is None or checkpoint.name != f"step_{settings.layers.steps:06d}":
        typer.echo(f"stopped before its end; continue with --resume --out {run}", err=True)
        raise typer.Exit(STOPPED)
    typer.echo(f"{checkpoint}")


@cli.command()
def prepare(
    config: Config,
    data: Data = None,
    stage: Annotated[StageName, typer.Option(help="Whose sources.")] = StageName.pretrain,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the prepared sources; data/NAME/STAGE by default.", show_default=False),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also those that are there already.")] = False,
) -> None:
    """Read the sources of a stage, filter their pairs, and write them so that any pair is found at once."""
    with one_line_errors():
        from training.config import load_config
        from training.prepare import prepare as run_preparation

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        chosen = settings.stage(stage.value)
        folder = out or Path("data") / settings.name / stage.value
        run_preparation(chosen.sources, chosen.filter, data=data, out=folder, again=again)
        typer.echo(f"{folder}")


@cli.command()
def pretrain(config: Config, pairs: Pairs = None, out: Out = None, resume: Resume = False) -> None:
    """Stage 1: contrastive pre-training on weak pairs with in-batch negatives. Under torchrun, on many processes."""
    _run_stage(StageName.pretrain, config, pairs, out, None, resume)


@cli.command()
def mine(
    config: Config,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Who searches: a checkpoint or model version; runs/NAME/pretrain/latest by default.",
            show_default=False,
        ),
    ] = None,
    pairs: Pairs = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the mined sources; data/NAME/mined by default.", show_default=False)
    ] = None,
) -> None:
    """Find hard negatives for the second stage's pairs, by BM25 and by a model. Other rules need no other search."""
    with one_line_errors():
        from service.recipe.tokens import load_tokenizer
        from training.config import load_config
        from training.evaluate import open_model
        from training.mine import mine as run_mining
        from training.pair_store import open_stores

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        searcher = model or Path("runs") / settings.name / "pretrain" / "latest"
        stores = open_stores(pairs or Path("data") / settings.name / "finetune", settings.finetune.sources)
        folder = out or Path("data") / settings.name / "mined"
        opened = open_model(searcher, progress=True)
        tokenizer = load_tokenizer(searcher / "tokenizer.json")
        for store in stores:
            run_mining(store, opened.embed, tokenizer, opened.files, settings.mine, folder)
        typer.echo(f"{folder}")


@cli.command()
def finetune(
    config: Config,
    start: Annotated[
        Path | None,
        typer.Option(help="The checkpoint to begin with; runs/NAME/pretrain/latest by default.", show_default=False),
    ] = None,
    pairs: Pairs = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Stage 2: labelled pairs with hard negatives and, where they are scored, a cross-encoder's ranking of them."""
    _run_stage(StageName.finetune, config, pairs, out, start, resume)


def _run_stage(
    stage: StageName, config: Path, pairs: Path | None, out: Path | None, start: Path | None, resume: bool
) -> None:
    with one_line_errors():
        from training.config import load_config
        from training.stages import train_stage

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        run = out or Path("runs") / settings.name / stage
        if stage is StageName.finetune:
            start = start or Path("runs") / settings.name / "pretrain" / "latest"
        finished = train_stage(
            settings,
            stage.value,
            pairs=pairs or Path("data") / settings.name / stage,
            out=run,
            start=start,
            resume=resume,
        )
    if not finished:
        typer.echo(f"stopped before its end; continue with --resume --out {run}", err=True)
        raise typer.Exit(STOPPED)
    typer.echo(f"{run / 'latest'}")


@cli.command()
def evaluate(
    model: Model,
    data: Data = None,
    tasks: Annotated[str, typer.Option(help="Sets, separated by commas; all of them by default.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="FLORES in 13 languages, STS-B and XQuAD only.")] = False,
    protocol: Annotated[ProtocolName, typer.Option(help="Which prompts each task gets.")] = ProtocolName.paper,
    json: Annotated[Path | None, typer.Option(help="Also write everything to this file.")] = None,
    engine: Annotated[EngineChoice, typer.Option(help="What computes a model version.")] = EngineChoice.onnx,
    precision: Annotated[PrecisionChoice, typer.Option(help="What it computes in.")] = PrecisionChoice.fp32,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 takes all cores.")] = 0,
) -> None:
    """Score a model on bitext mining, semantic similarity and retrieval."""
    with one_line_errors():
        folder = data_folder(data)
        from training.evaluate import PROTOCOLS, as_json, choose_sets, open_model, table
        from training.evaluate import evaluate as run_evaluation

        sets = choose_sets([task for task in tasks.split(",") if task], quick=quick)
        opened = open_model(model, engine=engine.value, precision=precision.value, threads=threads, progress=True)
        typer.echo(f"{opened.name}, {opened.engine}, protocol {protocol.value}\n")
        result = run_evaluation(
            opened, folder, sets, PROTOCOLS[protocol.value], lambda done, scores: typer.echo(table(done, scores))
        )
        if json is not None:
            json.write_text(as_json(result), encoding="utf-8")


if __name__ == "__main__":
    cli()
