"""The loop over a stage's steps, the same on every process: report, save, stop when asked."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Protocol, TypeVar

import torch
from tqdm import tqdm

from training.errors import TrainingError
from training.event_log import EventLog, scalars_of
from training.processes import Processes
from training.run_folder import RunFolder
from training.step import StepReport

logger = logging.getLogger(__name__)


class Drawn(Protocol):
    """A batch that knows where it is from."""

    @property
    def source(self) -> str:
        """The name of its source."""
        ...


class Pace(Protocol):
    """What a stage's settings say of the loop."""

    @property
    def log_every_steps(self) -> int:
        """Steps to a line of the curve."""
        ...

    @property
    def save_every_steps(self) -> int:
        """Steps to a checkpoint."""
        ...


AnyBatch = TypeVar("AnyBatch", bound=Drawn)


def run_stage(
    steps: range,
    batches: Iterator[AnyBatch],
    move: Callable[[int, AnyBatch], StepReport],
    save: Callable[[int], None],
    stop: Callable[[], bool],
    *,
    pace: Pace,
    batch_pairs: int,
    processes: Processes,
    folder: RunFolder,
) -> bool:
    """Whether the steps came to their end. A stop ends them behind the running one, with a checkpoint.

    move: the weights, by a step's number and batch.   save: by how many steps are done; on every process.
    stop: asked behind every step. A signal during a save is noted, and looked at behind the next step: what is
    being written is finished everywhere.   batch_pairs: of the whole batch.
    """
    reports: list[tuple[str, StepReport]] = []
    bar = tqdm(steps, initial=steps.start, total=steps.stop, unit=" steps", disable=not processes.is_first)
    with EventLog(folder.path, steps.start) if processes.is_first else nullcontext() as events:
        for number, batch in zip(bar, batches, strict=True):
            reports.append((batch.source, move(number, batch)))
            done = number + 1
            if done % pace.log_every_steps == 0 or done == steps.stop:
                tokens = added_up(sum(report.tokens for _, report in reports), processes)
                if events is not None:
                    folder.log(mean_of(done, [report for _, report in reports]))
                    pairs = batch_pairs * len(reports)
                    events.write(done, scalars_of(reports, pairs=pairs, tokens=tokens, seconds=events.seconds()))
                bar.set_postfix(loss=f"{reports[-1][1].loss:.3f}")
                reports = []
            stopping = added_up(stop(), processes) > 0
            if stopping or done == steps.stop or done % pace.save_every_steps == 0:
                save(done)
            if stopping and done < steps.stop:
                logger.warning("stopped behind step %d; continue with --resume", done)
                return False
    return True


def added_up(here: float, processes: Processes) -> float:
    """The sum over all processes: what one knows, all do, and they go on alike."""
    total = torch.tensor(float(here), dtype=torch.float64, device=processes.device)
    processes.add_up([total])
    return float(total)


def mean_of(step: int, reports: Sequence[StepReport]) -> dict[str, float]:
    """A line of the curve."""
    count = len(reports)
    return {
        "step": step,
        "loss": sum(report.loss for report in reports) / count,
        "gradient_norm": sum(report.gradient_norm for report in reports) / count,
        "learning_rate": reports[-1].rate,
    }


def check_together(first: int, processes: Processes) -> None:
    """Raise TrainingError where processes would go on from different steps: machines that share no folder."""
    steps = processes.gather(torch.tensor([first], device=processes.device)).tolist()
    if len(set(steps)) > 1:
        raise TrainingError(
            f"the processes find checkpoints of steps {', '.join(map(str, steps))}; --out must be one folder for all"
        )
