"""How a stage goes on, as event files for TensorBoard: what the curve has, and how fast it goes."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from training.step import StepReport

FOLDER = "events"


def scalars_of(
    reports: Sequence[tuple[str, StepReport]], *, pairs: int, tokens: float, seconds: float
) -> dict[str, float]:
    """Tag → value of some steps with their sources, in TensorBoard's way of grouping.

    pairs, tokens: of all these steps and all processes.   seconds: that they took.
    """
    by_source: dict[str, list[float]] = defaultdict(list)
    for source, report in reports:
        by_source[source].append(report.loss)
    return {
        "train/loss": sum(report.loss for _, report in reports) / len(reports),
        "train/gradient_norm": sum(report.gradient_norm for _, report in reports) / len(reports),
        "train/learning_rate": reports[-1][1].rate,
        "speed/pairs_per_s": pairs / seconds,
        "speed/tokens_per_s": tokens / seconds,
        **{f"loss_by_source/{source}": sum(losses) / len(losses) for source, losses in by_source.items()},
    }


class EventLog:
    """A run's event files; one more each time that it goes on."""

    def __init__(self, run: Path, first: int) -> None:
        """first: steps that were done before. What an earlier process logged behind them is not shown."""
        self._writer = SummaryWriter(str(run / FOLDER), purge_step=first + 1 if first else None)
        self._since = time.monotonic()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def seconds(self) -> float:
        """Since it was asked last, or opened."""
        now = time.monotonic()
        passed, self._since = now - self._since, now
        return passed

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """step: how many are done."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)
        # A killed run has logged what its curve has.
        self._writer.flush()
