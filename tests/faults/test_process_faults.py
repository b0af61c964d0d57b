"""Faults of files, of the clock, and of the gateway's own process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path

import psutil
import pytest
from episode import Episode, watched
from faulty import LAUNCHER, Faulty
from gateway_process import Gateway, run_service, start_gateway
from metric_series import scrape, series, wait_until_queue_is_empty
from test_engine_faults import engine_of, restarts

from service.recipe.spec import GOLDEN_FILE, MODEL_FILE, SPEC_FILE, TOKENIZER_FILE, file_sha256

Saw = Callable[..., None]

# Each of these in a row multiplies the ways to match by the next; then comes what can't match.
TOO_MANY_WAYS = "\u2622" * 60
HOUR_S = 3600


@pytest.fixture
def version(shipped: Path, tmp_path: Path) -> Path:
    """A copy of the shipped version, to damage."""
    return Path(shutil.copytree(shipped, tmp_path / "me5_nano" / "1"))


def damage(file: Path) -> bytes:
    """Turn one bit in the middle of a file; what it was before."""
    whole = file.read_bytes()
    with file.open("r+b") as stream:
        stream.seek(len(whole) // 2)
        stream.write(bytes([whole[len(whole) // 2] ^ 1]))
    return whole


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_model_file_is_damaged_before_start(shipped: Path, tmp_path: Path, saw: Saw) -> None:
    def start_with_damaged(name: str) -> tuple[str, subprocess.CompletedProcess[bytes]]:
        copy = Path(shutil.copytree(shipped, tmp_path / name / "1"))
        damage(copy / name)
        return name, run_service("serve", model=copy, port=0)

    with ThreadPoolExecutor(2) as pool:
        ended = dict(pool.map(start_with_damaged, [MODEL_FILE, TOKENIZER_FILE, GOLDEN_FILE, SPEC_FILE]))
    for name, process in ended.items():
        (line,) = process.stderr.decode().splitlines()
        assert process.returncode == 2, line
        assert line.startswith("me5: ")
        assert name in line
        assert "listening" not in line
    line = ended[MODEL_FILE].stderr.decode().strip()
    saw(
        requests={},
        red_after_s=None,
        log=re.sub(r"/\S*/", "…/", line)[:110],
        metric="",
        back="exit code 2 before the port opens; with the file mended",
    )


def test_model_file_is_damaged_while_running(version: Path, saw: Saw) -> None:
    with start_gateway(model=version, drain_s=0) as gateway, gateway.client() as client:
        before = scrape(client)
        with watched(gateway) as episode:
            whole = damage(version / MODEL_FILE)
            unnoticed = time.monotonic()
            episode.answered_after(unnoticed)
            at = time.monotonic()
            engine_of(gateway).kill()
            episode.wait_for(lambda: "can't be reopened" in gateway.log_text(), "a refused file")
            episode.wait_for(lambda: any(one.status == 503 for one in list(episode.asked)), "refused requests")
            mended = time.monotonic()
            (version / MODEL_FILE).write_bytes(whole)
            episode.wait_until_green_again(at)
            red, back = episode.red_at(at), episode.green_again_at(at)
            assert red is not None
            assert back is not None
            episode.answered_after(back)
        lost = restarts("died")
        assert scrape(client)[lost] - before[lost] == 1
        log = gateway.log_text()
    assert set(episode.statuses(at, back)) == {200, 503}
    found = re.search(r"the engine can't be reopened, next try in 1 s: .*", log)
    assert found
    assert MODEL_FILE in found[0]
    assert "Traceback" not in log
    saw(
        requests=dict(episode.statuses(at, back)),
        red_after_s=red - at,
        log="the engine can't be reopened, next try in 1 s: … model.onnx …",
        metric='me5_engine_restarts_total{reason="died"}',
        back="once the file is mended,",
        back_after_s=back - mended,
    )


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with no room left."""
    folder = tmp_path / "full"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a disk that is full")
    try:
        with contextlib.suppress(OSError):
            (folder / "ballast").write_bytes(b"\0" * 2**20)
        assert shutil.disk_usage(folder).free == 0
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_disk_is_full_at_start(full_disk: Path, monkeypatch: pytest.MonkeyPatch, saw: Saw) -> None:
    monkeypatch.setenv("TMPDIR", str(full_disk))
    started = time.monotonic()
    # Not TMPDIR of this process: the gateway's log has to go somewhere.
    with start_gateway(cache_dir=full_disk / "cache", drain_s=0) as gateway, watched(gateway) as episode:
        ready = time.monotonic()
        episode.answered_after(ready)
        log = gateway.log_text()
    found = re.search(r"WARNING \S+: (.*cache.*)", log)
    assert found, log
    assert "Traceback" not in log
    saw(
        requests=dict(episode.statuses(ready, time.monotonic())),
        red_after_s=None,
        log=re.sub(r"/\S*/", "…/", found[1])[:110],
        metric="",
        back="starts without a cache; ready",
        back_after_s=ready - started,
    )


def test_tokenizer_panics(version: Path, saw: Saw) -> None:
    # A tokenizer that does as the shipped one, but whose regular expression gives up on one sign often repeated:
    # the library then panics in its native code.
    content = json.loads((version / TOKENIZER_FILE).read_text(encoding="utf-8"))
    panics = {"type": "Replace", "pattern": {"Regex": "(\u2622+)+\u2623"}, "content": " "}
    content["normalizer"]["normalizers"].insert(0, panics)
    (version / TOKENIZER_FILE).write_text(json.dumps(content), encoding="utf-8")
    spec = json.loads((version / SPEC_FILE).read_text(encoding="utf-8"))
    spec["files"][TOKENIZER_FILE] = file_sha256(version / TOKENIZER_FILE)
    (version / SPEC_FILE).write_text(json.dumps(spec), encoding="utf-8")
    failed = series("me5_request_duration_seconds_count", route="/embed", role="none", lane="none", code="500")
    bad: list[tuple[str, dict[str, object]]] = [
        ("/embed", {"inputs": TOO_MANY_WAYS}),
        ("/embed", {"inputs": ["a text", f"{'long ' * 500}{TOO_MANY_WAYS}"]}),
        ("/v1/embeddings", {"input": TOO_MANY_WAYS}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": [TOO_MANY_WAYS]}}),
        ("/tokenize", {"inputs": TOO_MANY_WAYS}),
    ]
    with start_gateway(model=version, drain_s=0) as gateway, gateway.client() as client:
        with watched(gateway, clients=4) as episode:
            at = time.monotonic()
            answers = [client.post(path, json=body) for path, body in bad * 3]
            until = time.monotonic()
            episode.answered_after(until)
        counted = scrape(client)[failed]
        wait_until_queue_is_empty(client)
        log = gateway.log_text()
    assert [answer.status_code for answer in answers] == [500] * len(answers), [answer.text for answer in answers]
    assert [answer.text for answer in answers if "tokenizer failed" not in answer.text] == []
    assert set(episode.statuses(at, until)) == {200}
    assert episode.red_at(at) is None
    assert counted == 6
    assert "the tokenizer panicked" in log
    saw(
        requests=dict(episode.statuses(at, until)) | {500: len(answers)},
        red_after_s=None,
        log="the tokenizer panicked",
        metric='me5_request_duration_seconds_count{code="500"}',
        back="with the next request",
    )


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
        red_after_s=None,
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
        back=f"exit code 0; a drain of 0.5 s took {ended - at:.1f} s",
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
        back=f"exit code 0; a drain of 60 s took {ended - at:.1f} s",
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
            back=f"by its supervisor; the engine's process is gone after {orphan_s * 1000:.0f} ms, the port is free",
        )
