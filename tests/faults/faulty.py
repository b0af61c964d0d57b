"""A gateway whose engine takes orders, and what its settings are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from gateway_process import Gateway
from metric_series import Series, series

# Keeps what a row showed: the fields of Evidence, by name.
Saw = Callable[..., None]

LAUNCHER = Path(__file__).parent / "faulty_gateway.py"
# What an engine may take for a batch: the shipped model takes milliseconds, but the machine may be busy.
ENGINE_TIMEOUT_S = 2.0
HEADER_TIMEOUT_S = 1.0
BODY_TIMEOUT_S = 1.0
WRITE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Faulty:
    """A gateway whose engine takes orders."""

    gateway: Gateway
    orders: Path

    def order(self, how_often: str, fault: str) -> float:
        """Have the engine commit a fault from now on; the moment it was ordered."""
        draft = self.orders.with_suffix(".draft")
        draft.write_text(f"{how_often} {fault}", encoding="ascii")
        at = time.monotonic()
        draft.rename(self.orders)
        return at

    def withdraw(self) -> None:
        """No fault from the next process on."""
        self.orders.unlink(missing_ok=True)


def engine_of(gateway: Gateway) -> psutil.Process:
    """The engine's process."""
    (child,) = psutil.Process(gateway.process.pid).children()
    return child


def restarts(reason: str) -> Series:
    """The counter of lost engines."""
    return series("me5_engine_restarts_total", reason=reason)
