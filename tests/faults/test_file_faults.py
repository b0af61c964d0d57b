"""Faults of files: damaged, on a full disk, or with a tokenizer in them that panics."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from episode import watched
from evidence import GREEN
from faulty import Saw, engine_of, restarts
from gateway_process import run_service, start_gateway
from metric_series import scrape, series, wait_until_queue_is_empty

from service.recipe.spec import GOLDEN_FILE, MODEL_FILE, SPEC_FILE, TOKENIZER_FILE, file_sha256

# Each of these in a row multiplies the ways to match by the next; then comes what can't match.
TOO_MANY_WAYS = "\u2622" * 60


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


def damage_or_cut(file: Path) -> None:
    """A spec.json has no hash that a turned bit could miss: it is cut to half."""
    if file.name == SPEC_FILE:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        damage(file)


def test_model_file_is_damaged_before_start(shipped: Path, tmp_path: Path, saw: Saw) -> None:
    def start_with_damaged(name: str) -> tuple[str, subprocess.CompletedProcess[bytes]]:
        copy = Path(shutil.copytree(shipped, tmp_path / name / "1"))
        damage_or_cut(copy / name)
        return name, run_service("serve", model=copy, port=0)

    with ThreadPoolExecutor(2) as pool:
        ended = dict(pool.map(start_with_damaged, [MODEL_FILE, TOKENIZER_FILE, GOLDEN_FILE, SPEC_FILE]))
    for name, process in ended.items():
        (line,) = process.stderr.decode().splitlines()
        assert process.returncode == 2, line
        assert line.startswith("me5: ")
        assert name in line
        assert "listening" not in line
    assert "is damaged or was edited: its SHA-256 is" in ended[MODEL_FILE].stderr.decode()
    saw(
        requests={},
        red_after_s="the port never opens",
        log="me5: …/model.onnx is damaged or was edited: its SHA-256 is …",
        metric="",
        back="exit code 2; with the file mended",
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
    # A batch may still leave the engine in the moment in which it is killed.
    assert {503} <= set(episode.statuses(at, back)) <= {200, 503}
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
    assert re.search(r"WARNING \S+: the cached model \S+ can't be built: 0 bytes are free", log), log
    assert "Traceback" not in log
    saw(
        requests=dict(episode.statuses(ready, time.monotonic())),
        red_after_s=GREEN,
        log="the cached model … can't be built: 0 bytes are free, …",
        metric="",
        back="starts without a cache, ready",
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
        red_after_s=GREEN,
        log="the tokenizer panicked",
        metric='me5_request_duration_seconds_count{code="500"}',
        back="with the next request",
    )
