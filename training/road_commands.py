"""The commands that take a model through all its stages: once, or once for each way that is compared."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from training.terminal import STOPPED, Config, Data, data_folder, one_line_errors

commands = typer.Typer()


@commands.command("run")
def run_all(
    config: Config,
    data: Data = None,
    out: Annotated[
        Path, typer.Option(help="Where data/, runs/ and model_repo/ are made.", show_default="here")
    ] = Path(),
    processes: Annotated[int, typer.Option(min=1, help="Processes that train together, one a GPU.")] = 1,
    show: Annotated[bool, typer.Option("--show", help="Print the commands, and run none.")] = False,
) -> None:
    """Every stage of CONFIG, from pairs to an evaluated, exported version. Typed again, it goes on where it stopped."""
    with one_line_errors():
        from training.config import load_config
        from training.pipeline import run, steps_of

        folder, settings = data_folder(data), load_config(config)
        steps = steps_of(settings, config, folder, out)
        if show:
            for step in steps:
                typer.echo(step.written(processes))
            return
        finished = run(steps, settings, out / "runs" / settings.name, processes=processes, say=typer.echo)
    if not finished:
        typer.echo("stopped before its end; the same command goes on", err=True)
        raise typer.Exit(STOPPED)


@commands.command()
def ablate(
    config: Config,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of its runs; runs/NAME/ablation by default.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Times that each way of training is repeated.")] = 3,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Also the tables into this page, between its lines ablation:start and :end.", show_default=False
        ),
    ] = None,
) -> None:
    """What each part of the recipe adds: CONFIG trained with and without it, measured, with intervals."""
    with one_line_errors():
        folder = data_folder(data)
        from training.ablate import ablate as run_ablation
        from training.ablation_report import effects_of, markdown
        from training.config import load_config
        from training.pages import check_page, put_between

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        settings = load_config(config)
        if into is not None:
            check_page(into, "ablation")
        runs = out or Path("runs") / settings.name / "ablation"
        results = run_ablation(settings, data=folder, out=runs, seeds=range(1, seeds + 1))
        if results is not None:
            table = markdown(results, effects_of(results))
            (runs / "ablation.md").write_text(table, encoding="utf-8")
            if into is not None:
                put_between(into, "ablation", table)
    if results is None:
        typer.echo("stopped before its end; the same command goes on", err=True)
        raise typer.Exit(STOPPED)
    typer.echo(table)
