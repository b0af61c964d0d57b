"""The command line of training: `python -m training prepare | pretrain | … | run | evaluate | export`.

Heavy packages are imported inside the commands, so that --help answers at once and without torch.
"""

import typer

from training.evaluation_commands import commands as evaluation_commands
from training.export_commands import commands as export_commands
from training.pair_commands import commands as pair_commands
from training.road_commands import commands as road_commands
from training.stage_commands import commands as stage_commands

cli = typer.Typer(
    name="python -m training",
    help="Train, export and evaluate Multilingual E5 models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Without a name: their commands stand beside each other.
for commands in (pair_commands, stage_commands, road_commands, evaluation_commands, export_commands):
    cli.add_typer(commands)


if __name__ == "__main__":
    cli()
