"""The command line of training: `python -m training bootstrap | prepare | pretrain | export | …`.

Heavy packages are imported inside the commands, so that --help answers at once and without torch.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.errors import Me5Error

cli = typer.Typer(
    name="python -m training",
    help="Train, export and evaluate Multilingual E5 models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


# A run that was stopped, told apart from one that failed: a Makefile must not go on with it.
STOPPED = 3


# Typer wants enumerations for closed choices.
class StoredWeights(StrEnum):
    int8 = "int8"
    float32 = "float32"


class StageName(StrEnum):
    pretrain = "pretrain"
    finetune = "finetune"
    instruct = "instruct"


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


Data = Annotated[
    Path | None,
    typer.Option(envvar="ME5_DATA", help="Folder with MANIFEST.json, train/ and eval/.", show_default=False),
]
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


@cli.command()
def instruct(
    config: Config,
    start: Annotated[
        Path | None,
        typer.Option(help="The checkpoint to begin with; runs/NAME/pretrain/latest by default.", show_default=False),
    ] = None,
    pairs: Pairs = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Stage 2 of an instruct model: queries carry the instruction of their task, and synthetic pairs join."""
    _run_stage(StageName.instruct, config, pairs, out, start, resume)


@cli.command()
def synthesise(
    endpoint: Annotated[str, typer.Option(help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    out: Annotated[Path, typer.Option(help="Folder of the pairs, such as $ME5_DATA/instruct/synthetic.")],
    limit: Annotated[int, typer.Option(min=1, help="Examples to ask for; a higher number later goes on.")] = 500_000,
    settings: Annotated[
        Path | None, typer.Option(help="TOML file of other settings than the defaults.", show_default=False)
    ] = None,
    key_variable: Annotated[str, typer.Option(help="The environment variable with the key.")] = "OPENAI_API_KEY",
    moderation: Annotated[
        str, typer.Option(help="A server with /moderations, for unsafe texts; weak rules without.", show_default=False)
    ] = "",
    moderation_model: Annotated[str, typer.Option(help="Its model.", show_default=False)] = "",
    moderation_key_variable: Annotated[str, typer.Option(help="The variable with its key.")] = "MODERATION_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    requests_a_minute: Annotated[
        float | None, typer.Option(min=0.01, help="Requests a minute at most.", show_default=False)
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="Seconds until a request is given up.")] = 120.0,
    dry_run: Annotated[int, typer.Option(min=0, help="Print the first prompts of so many units and ask nobody.")] = 0,
) -> None:
    """Have a language model write instruction pairs; the same command again goes on where it was stopped."""
    with one_line_errors():
        from training.config import read_settings
        from training.synthesis.config import SynthesisConfig
        from training.synthesis.run import Server, prompts_of
        from training.synthesis.run import synthesise as run_synthesis

        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        config = SynthesisConfig() if settings is None else read_settings(settings, SynthesisConfig)
        if dry_run:
            typer.echo("\n\n----\n\n".join(prompts_of(config, dry_run)))
            return
        server = Server(
            endpoint,
            model,
            key=os.environ.get(key_variable),
            moderation_url=moderation,
            moderation_key=os.environ.get(moderation_key_variable),
            moderation_model=moderation_model,
            concurrency=concurrency,
            requests_a_minute=requests_a_minute,
            timeout_s=timeout_s,
        )
        try:
            done = run_synthesis(config, server, out, limit)
        except KeyboardInterrupt:
            typer.echo("stopped; give the same command to go on", err=True)
            raise typer.Exit(STOPPED) from None
    made, tokens = done.statistics, (done.statistics["prompt_tokens"], done.statistics["answer_tokens"])
    typer.echo(
        f"{out}: {made['examples']} pairs, {made['instructions']} instructions, from {made['answers']} answers; "
        f"tokens: {tokens[0]} asked, {tokens[1]} answered; {done.retries} retries"
    )
    if done.unanswered:
        typer.echo(f"{done.unanswered} requests had no answer; give the same command to ask again", err=True)
        raise typer.Exit(STOPPED)


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
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint in the Sentence Transformers layout.")],
    name: Annotated[str, typer.Option(help="The model's name in the repository, such as me5_nano.")],
    out: Annotated[Path, typer.Option(help="The model repository.")] = Path("model_repo"),
    weights: Annotated[StoredWeights, typer.Option(help="How the weights are stored.")] = StoredWeights.float32,
    version: Annotated[int | None, typer.Option(min=1, help="Its number; by default the next free one.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Refuse a version larger than this.")] = None,
) -> None:
    """Write a checkpoint as a model version, proved against the checkpoint."""
    with one_line_errors():
        from training.export import export as run_export

        exported = run_export(
            checkpoint, name=name, model_repo=out, weights=weights.value, version=version, max_bytes=max_bytes
        )
        typer.echo(exported.describe())


@cli.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A model version (model_repo/NAME/VERSION).")],
    data: Data = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help='In place of --data: JSON lines {"text", "lang"}, half of them held out.', show_default=False
        ),
    ] = None,
) -> None:
    """Write the next version: the same model, and graphs that compute in int8."""
    with one_line_errors():
        from training.int8 import quantize as run_quantization
        from training.int8_texts import texts_of_data, texts_of_file

        chosen = texts_of_data(data_folder(data)) if texts is None else texts_of_file(texts)
        typer.echo(run_quantization(model, chosen).describe())


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
        typer.echo(f"error: {error.name} is not installed; pip install -e '.[training]'", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    cli()
