"""The engine's process, started before it is known what it is to open: it reads its modules meanwhile."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

WORKER = (sys.executable, "-m", "service.engine_worker")


@dataclass(frozen=True)
class Started:
    """A process that waits for its order.   control: the gateway's end of its channel."""

    process: subprocess.Popen[bytes]
    control: socket.socket


def start_worker(command: Sequence[str] = WORKER) -> Started:
    """Start it. Raises OSError where it can't be. It ends with the thread that started it, so not in one of a pool."""
    ours, theirs = socket.socketpair()
    try:
        arguments = [*command, str(theirs.fileno())]
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Started(process, ours)
