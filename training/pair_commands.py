"""The commands that make and refine pairs: prepare, filter, mine, score, synthesise."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.terminal import STOPPED, Config, Data, Mined, Pairs, StageName, one_line_errors

if TYPE_CHECKING:
    from training.config import ModelConfig

commands = typer.Typer()

Teacher = Annotated[
    str,
    typer.Option(
        help="A re-ranker, a folder or a repository of the hub; teach.teacher of CONFIG, or runs/NAME/teach/latest, by "
        "default.",
        show_default=False,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(help="File of the teachers' scores; data/NAME/scores.sqlite3 by default.", show_default=False),
]


@commands.command()
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


@commands.command(name="filter")
def filter_pairs(
    config: Config,
    model: Annotated[Path, typer.Option(help="Who looks: a checkpoint or model version.")],
    stage: Annotated[StageName, typer.Option(help="Whose pairs.")] = StageName.pretrain,
    pairs: Pairs = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of what is kept; data/NAME/STAGE-consistent by default.", show_default=False),
    ] = None,
) -> None:
    """Keep the pairs whose passage a model finds for their query among many others of the source."""
    with one_line_errors():
        from training.config import load_config
        from training.consistency import filter_consistent
        from training.evaluate import open_model
        from training.pair_store import open_stores
        from training.processes import device_alone

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        stores = open_stores(pairs or Path("data") / settings.name / stage.value, settings.stage(stage.value).sources)
        folder = out or Path("data") / settings.name / f"{stage.value}-consistent"
        opened = open_model(model, progress=True, device=device_alone())
        for store in stores:
            filter_consistent(store, opened.embed, opened.files, settings.consistency, folder, settings.seed)
        typer.echo(f"{folder}")


@commands.command()
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
    teacher: Teacher = "",
    cache: Cache = None,
) -> None:
    """Find hard negatives for the second stage's pairs, by BM25 and by a model. Other rules need no other search.

    Scores that a teacher has given before are written beside them.
    """
    with one_line_errors():
        from service.recipe.tokens import load_tokenizer
        from training.config import load_config
        from training.cross_encoder import identity_of
        from training.evaluate import open_model
        from training.mine import mine as run_mining
        from training.pair_store import open_stores
        from training.processes import device_alone
        from training.score_cache import open_cache

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        searcher = model or Path("runs") / settings.name / "pretrain" / "latest"
        stores = open_stores(pairs or Path("data") / settings.name / settings.second, settings.labelled.sources)
        folder = out or Path("data") / settings.name / "mined"
        opened = open_model(searcher, progress=True, device=device_alone())
        tokenizer = load_tokenizer(searcher / "tokenizer.json")
        name, scores = teacher_of(settings, teacher), cache or cache_of(settings)
        # What a teacher has read is taken over; where none is named and none was trained, mining asks nobody.
        is_there = scores.is_file() and bool(teacher or settings.teach.teacher or Path(name).is_dir())
        with open_cache(scores, identity_of(name, settings.teach)) if is_there else nullcontext() as kept:
            for store in stores:
                run_mining(store, opened.embed, tokenizer, opened.files, settings.mine, folder, kept)
        typer.echo(f"{folder}")


@commands.command()
def score(
    config: Config,
    teacher: Teacher = "",
    pairs: Mined = None,
    cache: Cache = None,
    candidates: Annotated[
        bool,
        typer.Option("--candidates", help="Read all that mining found, for mine.teacher_margin; then mine again."),
    ] = False,
    prepared: Annotated[
        Path | None,
        typer.Option(
            help="With --candidates: the pairs that were mined; data/NAME/STAGE by default.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a teacher's scores into the mined sources. What it has read before is not read again."""
    with one_line_errors():
        import torch

        from training.config import load_config
        from training.cross_encoder import identity_of, open_cross_encoder
        from training.mine import found_for
        from training.pair_store import open_stores
        from training.processes import device_alone
        from training.score import score_candidates, score_store
        from training.score_cache import open_cache

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        name, folder = teacher_of(settings, teacher), pairs or Path("data") / settings.name / "mined"
        before = prepared or Path("data") / settings.name / settings.second
        stores = open_stores(before if candidates else folder, settings.labelled.sources)
        opened = open_cross_encoder(name, torch.device(device_alone()), settings.teach.max_tokens)
        window = range(settings.mine.rank_from, settings.mine.rank_to)
        with open_cache(cache or cache_of(settings), identity_of(name, settings.teach)) as kept:
            for store in stores:
                if candidates:
                    score_candidates(store, found_for(store, folder), window, opened, kept, settings.teach)
                else:
                    score_store(store, opened, kept, settings.teach)
        typer.echo(f"{folder}")


@commands.command()
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


def teacher_of(settings: "ModelConfig", given: str) -> str:
    """The re-ranker that is asked: the one that is named, or the one that was trained here."""
    return given or settings.teach.teacher or str(Path("runs") / settings.name / "teach" / "latest")


def cache_of(settings: "ModelConfig") -> Path:
    """Where the scores of a model's teachers are kept."""
    return Path("data") / settings.name / "scores.sqlite3"
