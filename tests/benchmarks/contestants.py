"""The servers under test: how each is started, asked and ended."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from load import Wire

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
START_MAX_S = 300.0
STOP_MAX_S = 15.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Contestant:
    """A server. command: its port goes in place of {port}.   path: where texts go.   health: answers 200 once ready."""

    name: str
    command: tuple[str, ...]
    path: str
    health: str
    wire: Wire = "tei"
    environment: dict[str, str] = field(default_factory=dict)
    cwd: Path = ROOT


@dataclass(frozen=True)
class Server:
    """A contestant that runs."""

    contestant: Contestant
    url: str
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        """As in the report."""
        return self.contestant.name

    def cpu_seconds(self) -> float:
        """CPU time of the process and its children so far."""
        with psutil.Process(self.process.pid).oneshot():
            tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in tree)


class DidNotStart(Exception):
    """A server ended, or was not ready in time; the message has its last line."""


def me5(precision: str, model_repo: Path, model: str) -> Contestant:
    """The gateway with default settings."""
    return Contestant(
        f"me5 {precision}",
        (sys.executable, "-m", "service", "serve"),
        "/embed",
        "/readyz",
        environment={
            "ME5_PORT": "{port}",
            "ME5_MODEL_REPO": str(model_repo),
            "ME5_MODEL": model,
            "ME5_PRECISION": precision,
            "ME5_LOG_LEVEL": "warning",
        },
    )


def infinity(python: Path, checkpoint: Path, scratch: Path) -> Contestant:
    """Infinity with its fastest engine for CPUs."""
    # Its own warm-up takes a minute on two cores; the benchmark warms every server up in the same way.
    # Told to pool by the mean: by itself it takes the first token's state, which is no mE5 vector.
    options = "--engine optimum --device cpu --no-bettertransformer --no-model-warmup --pooling-method mean"
    return Contestant(
        "Infinity",
        (
            str(python.parent / "infinity_emb"),
            *("v2", "--model-id", str(checkpoint), *options.split(), "--host", "127.0.0.1", "--port", "{port}"),
        ),
        "/embeddings",
        "/health",
        wire="openai",
        environment={"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "300"},
        cwd=scratch,
    )


def plain(python: Path, checkpoint: Path, scratch: Path) -> Contestant:
    """FastAPI + sentence-transformers."""
    return Contestant(
        "FastAPI + sentence-transformers",
        (str(python), str(HERE / "plain_server.py"), str(checkpoint), "{port}"),
        "/embed",
        "/health",
        environment={"HF_HUB_OFFLINE": "1"},
        cwd=scratch,
    )


def echo(dimension: int) -> Contestant:
    """The server that does nothing."""
    command = (sys.executable, str(HERE / "echo_server.py"), str(dimension), "{port}")
    return Contestant("echo", command, "/embed", "/health")


def refuse_busy(ports: range) -> None:
    """End the program if anybody listens on one of these ports: it would answer in place of a server under test."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"port {port} is in use; end what listens there, or take others with --first-port")


@contextmanager
def running(contestant: Contestant, port: int, logs: Path) -> Iterator[Server]:
    """The server, ready; it and its children are gone afterwards, even if this process is killed."""
    log = logs / f"{port}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in contestant.command],
            cwd=contestant.cwd,
            env=_environment(contestant, port),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        server = Server(contestant, f"http://127.0.0.1:{port}{contestant.path}", process)
        _wait_until_ready(server, f"http://127.0.0.1:{port}{contestant.health}", log)
        yield server
    finally:
        _end(process)


def _environment(contestant: Contestant, port: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ME5_")}
    return kept | {name: value.replace("{port}", str(port)) for name, value in contestant.environment.items()}


def _end_with_parent() -> None:
    # Runs in the child before it becomes the server: SIGTERM when the parent dies, however that happens.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to the whole session."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_MAX_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until_ready(server: Server, health: str, log: Path) -> None:
    give_up = time.monotonic() + START_MAX_S
    while time.monotonic() < give_up:
        if server.process.poll() is not None:
            raise DidNotStart(f"{server.name} ended while starting: {_last_line(log)}")
        try:
            if httpx.get(health, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise DidNotStart(f"{server.name} was not ready after {START_MAX_S:g} s: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else "it wrote nothing"
