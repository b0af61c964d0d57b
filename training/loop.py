"""The loop over the steps: log, save, stop when asked."""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """What one step did, for the log."""

    pairs: int
    tokens: int
    loss: float


class Trainer(Protocol):
    """What moves its weights once per numbered step."""

    def step(self, number: int) -> StepReport:
        """Draw batch `number` and move the weights."""
        ...


def run_steps(
    trainer: Trainer,
    steps: range,
    save: Callable[[int, int], None],
    should_stop: Callable[[], bool],
    save_every_steps: int,
    log_every_steps: int,
    pairs_seen: int = 0,
) -> bool:
    """Run the numbered steps and save on the way; save(steps_done, pairs_seen).

    Returns whether all steps were done: a stop ends the loop behind the running step, with a checkpoint.
    """
    reports: list[StepReport] = []
    since = time.monotonic()
    for number in steps:
        report = trainer.step(number)
        reports.append(report)
        pairs_seen += report.pairs
        done = number + 1
        if len(reports) == log_every_steps:
            log_progress(done, pairs_seen, reports, time.monotonic() - since)
            reports, since = [], time.monotonic()
        stopping = should_stop()
        if stopping or done == steps.stop or done % save_every_steps == 0:
            save(done, pairs_seen)
        if stopping and done < steps.stop:
            logger.warning("stopped behind step %d; continue with --resume", done)
            return False
    return True


def log_progress(done: int, pairs_seen: int, reports: list[StepReport], seconds: float) -> None:
    """Log the averages of the last reports."""
    loss = sum(report.loss for report in reports) / len(reports)
    pairs_per_s = sum(report.pairs for report in reports) / seconds
    tokens_per_s = sum(report.tokens for report in reports) / seconds
    logger.info(
        "step %d, %d pairs seen, loss %.4f, %.0f pairs/s, %.0f tokens/s",
        done,
        pairs_seen,
        loss,
        pairs_per_s,
        tokens_per_s,
    )


def stop_on_signal() -> Callable[[], bool]:
    """Note SIGTERM and SIGINT instead of dying; the loop ends behind the running step."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return lambda: bool(received)
