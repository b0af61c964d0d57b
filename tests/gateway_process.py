"""The real gateway as a process of its own, for the tests that speak to it over HTTP or watch it start and end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
MODEL_REPO = ROOT / "model_repo"
# What the repository ships, so that a clone serves at once.
SHIPPED_MODEL = "me5_nano"

# Generous: opening takes seconds, but the machine may be busy with something else.
START_MAX_S = 90.0
STOP_MAX_S = 60.0


@dataclass(frozen=True)
class Gateway:
    """A gateway that serves.

    process: to signal and to wait for.   log: where its stderr goes.   trust: what checks its certificate.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    trust: ssl.SSLContext | bool = True

    def log_text(self) -> str:
        """What it has written to stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def client(self) -> httpx.Client:
        """A client of its own, with a connection of its own, for a thread."""
        return httpx.Client(base_url=self.url, timeout=120, verify=self.trust)

    def terminate(self) -> int:
        """SIGTERM, and the exit code it ends with."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_MAX_S)


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with these settings as the only ME5_* variables; names in lower case, unprefixed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ME5_")}
    return kept | {f"ME5_{name.upper()}": str(value) for name, value in settings.items()}


@contextmanager
def start_gateway(
    *,
    program: tuple[str, ...] = ("-m", "service", "serve"),
    exit_code: int = 0,
    status: int = 200,
    **settings: object,
) -> Iterator[Gateway]:
    """A gateway on a free port; ended by SIGTERM if it still runs, and its exit code must be the one given.

    status: of /readyz, which is waited for; 503 takes one that serves without an engine.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *program],
                cwd=ROOT,
                env=environment(**{"model": SHIPPED_MODEL, "port": port, **settings}),
                stdout=stream,
                stderr=stream,
            )
        gateway = Gateway(f"http://127.0.0.1:{port}", process, log)
        if "tls_cert" in settings:
            trust = ssl.create_default_context(cafile=str(settings["tls_cert"]))
            gateway = Gateway(f"https://127.0.0.1:{port}", process, log, trust)
        try:
            wait_until_ready(gateway, status)
            yield gateway
            code = gateway.terminate()
            assert code == exit_code, f"exit code {code}\n{gateway.log_text()}"
        finally:
            # Only reached alive when something above has failed already.
            process.kill()
            process.wait()


def run_service(*arguments: str, stdin: str | bytes = "", **settings: object) -> subprocess.CompletedProcess[bytes]:
    """`python -m service` with these arguments, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        input=stdin.encode("utf-8") if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=START_MAX_S,
        check=False,
    )


# Linux gives outgoing connections those from 32768 on.
PORTS = range(20_000, 32_000)


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody has right now, below those that outgoing connections are given.

    A server that is started a while later, or again, would else find its port taken by somebody's connection.
    """
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port


def wait_until_ready(gateway: Gateway, status: int = 200) -> None:
    """Wait until /readyz gives this status."""
    give_up = time.monotonic() + START_MAX_S
    while time.monotonic() < give_up:
        assert gateway.process.poll() is None, f"the gateway ended while starting\n{gateway.log_text()}"
        try:
            if httpx.get(f"{gateway.url}/readyz", timeout=5, verify=gateway.trust).status_code == status:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"/readyz did not give {status} in {START_MAX_S:g} s\n{gateway.log_text()}")
