"""Faults of the clock, and the end of the gateway's own process."""

from __future__ import annotations

import signal
import socket
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import psutil
import pytest
from episode import Episode, watched
from evidence import GREEN
from faulty import LAUNCHER, Faulty, Saw, engine_of
from gateway_process import Gateway, start_gateway

HOUR_S = 3600


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_clock_jumps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saw: Saw) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime (apt-get install faketime)")
    clock = tmp_path / "clock"
    clock.write_text("+0", encoding="ascii")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
    monkeypatch.setenv("FAKETIME_CACHE_DURATION", "1")
    # The monotonic clock jumps on no machine.
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    jumps: list[float] = []
    with start_gateway(drain_s=0) as gateway, gateway.client() as client:

        def offset_s() -> float:
            return parsedate_to_datetime(client.get("/livez").headers["date"]).timestamp() - time.time()

        with watched(gateway) as episode:
            at = time.monotonic()
            for jump in ("+3600", "-3600"):
                clock.write_text(jump, encoding="ascii")
                # uvicorn makes a new Date once a second.
                episode.wait_for(lambda jump=jump: abs(offset_s() - float(jump)) < 60, "the jump")
                jumps.append(offset_s())
                episode.answered_after(time.monotonic())
                waits = {"x-me5-timeout-ms": "20000"}
                assert client.post("/embed", json={"inputs": "in time"}, headers=waits).status_code == 200
            until = time.monotonic()
        log = gateway.log_text()
    assert max(jumps) > HOUR_S - 60
    assert min(jumps) < 60 - HOUR_S
    assert set(episode.statuses(at, until)) == {200}
    assert episode.red_at(at) is None
    assert "ERROR" not in log
    saw(
        requests=dict(episode.statuses(at, until)),
        red_after_s=GREEN,
        log="",
        metric="",
        back="nothing reads the wall clock but the log",
    )


def end(gateway: Gateway, episode: Episode, signals: int) -> tuple[float, float, float]:
    """SIGTERM so many times; when it was sent, and when the process and its engine were gone."""
    engine = engine_of(gateway)
    at = time.monotonic()
    for number in range(signals):
        if number:
            episode.wait_for(lambda: "draining" in gateway.log_text(), "the first signal")
        gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(60) == 0
    ended = time.monotonic()
    episode.wait_for(lambda: gone(engine), "the engine's end")
    red = episode.red_at(at)
    assert red is not None
    return at, red, ended


def accepted(episode: Episode, at: float) -> dict[int, int]:
    """How the requests ended that were sent before this moment and answered after it."""
    return dict(episode.statuses(at, at))


def test_sigterm_under_load(saw: Saw) -> None:
    with start_gateway(drain_s=0.5) as gateway:
        with watched(gateway) as episode:
            at, red, ended = end(gateway, episode, 1)
        log = gateway.log_text()
    assert set(accepted(episode, at)) == {200}
    # While the port is open, new requests are answered too.
    assert set(episode.statuses(at, red + 0.3)) == {200}
    assert "Traceback" not in log
    saw(
        requests=accepted(episode, at),
        red_after_s=red - at,
        log="SIGTERM: draining for … s",
        metric="me5_ready",
        back="ends with exit code 0",
        back_after_s=ended - at,
    )


def test_sigterm_twice(saw: Saw) -> None:
    with start_gateway(drain_s=60) as gateway:
        with watched(gateway) as episode:
            at, red, ended = end(gateway, episode, 2)
        log = gateway.log_text()
    assert ended - at < 30
    assert set(accepted(episode, at)) == {200}
    assert "Traceback" not in log
    saw(
        requests=accepted(episode, at),
        red_after_s=red - at,
        log="SIGTERM: draining for … s",
        metric="me5_ready",
        back="ends with exit code 0",
        back_after_s=ended - at,
    )


@pytest.mark.parametrize("engine_does", ["its work", "hangs"])
def test_gateway_is_killed(engine_does: str, tmp_path: Path, saw: Saw) -> None:
    program = (str(LAUNCHER), str(tmp_path / "orders"))
    with start_gateway(program=program, exit_code=-signal.SIGKILL, engine_timeout_s=600) as gateway:
        engine = engine_of(gateway)
        with watched(gateway) as episode:
            if engine_does == "hangs":
                Faulty(gateway, tmp_path / "orders").order("once", "hangs")
                episode.wait_for(lambda: not (tmp_path / "orders").exists(), "a hang")
            at = time.monotonic()
            gateway.process.kill()
            gateway.process.wait(30)
            episode.wait_for(lambda: gone(engine), "the engine's end")
            orphan_s = time.monotonic() - at
            # Nothing holds the port: the supervisor's next gateway can have it at once.
            host, port = gateway.url.removeprefix("http://").rsplit(":", 1)
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, int(port)))
    red = episode.red_at(at)
    assert red is not None
    if engine_does == "its work":
        saw(
            requests=accepted(episode, at),
            red_after_s=red - at,
            log="",
            metric="up (Prometheus's own)",
            back="by its supervisor; the port is free and the engine's process gone",
            back_after_s=orphan_s,
        )
