"""The cache of optimised models: what it saves, and that nothing wrong with it stops a start."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_engine import SHIPPED

from service.engine import open_engine
from service.engine_cache import ENTRIES_MAX, MANIFEST_FILE, UNFINISHED, cache_key
from service.recipe.spec import load_spec
from service.recipe.tokens import pad
from service.settings import EngineName

ENGINES: list[EngineName] = ["onnx", "openvino"]
SPEC = load_spec(SHIPPED, verify=False)
BATCH = pad([np.arange(10, 30, dtype=np.int32), np.arange(50, 59, dtype=np.int32)], SPEC.pad_id)


def vectors(engine: EngineName, cache: Path | None, streams: int = 1) -> np.ndarray:
    running = open_engine(SHIPPED, SPEC, engine=engine, threads=2, streams=streams, cache=cache)
    found = running.run(BATCH)
    running.close()
    return found


def entries(cache: Path) -> list[Path]:
    return [path.parent for path in cache.glob(f"*/{MANIFEST_FILE}")]


@pytest.mark.parametrize("engine", ENGINES)
def test_one_entry_serves_every_number_of_streams_with_the_same_vectors(engine: EngineName, tmp_path: Path) -> None:
    wanted = vectors(engine, None)
    for streams in (1, 2):
        np.testing.assert_allclose(vectors(engine, tmp_path, streams), wanted, atol=1e-6)
    assert len(entries(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "no manifest"])
def test_a_damaged_entry_is_noticed_and_made_anew(
    engine: EngineName, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = vectors(engine, tmp_path)
    (entry,) = entries(tmp_path)
    victim = max(entry.iterdir(), key=lambda path: path.stat().st_size)
    if damage == "no manifest":
        (entry / MANIFEST_FILE).unlink()
    else:
        data = bytearray(victim.read_bytes())
        middle = len(data) // 2
        data[middle] ^= 0xFF
        victim.write_bytes(data[:middle] if damage == "cut" else data)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(vectors(engine, tmp_path), wanted)
    assert "can't be found" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(vectors(engine, tmp_path), wanted)
    assert not caplog.records


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cache_that_is_a_file_or_not_ones_own_is_a_warning(
    engine: EngineName, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "everyones").mkdir()
    (tmp_path / "everyones").chmod(0o777)
    for cache in (tmp_path / "file", tmp_path / "everyones"):
        caplog.clear()
        assert np.isfinite(vectors(engine, cache)).all()
        assert f"the cache {cache} is not used" in caplog.text
    assert not list((tmp_path / "everyones").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k,mode=700", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_full_or_read_only_disk_is_a_warning(
    engine: EngineName, state: str, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if state == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert np.isfinite(vectors(engine, small_disk)).all()
    assert "going on without it" in caplog.text
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_while_an_entry_is_written_is_a_warning(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Somebody else took the room after it was looked at.
    monkeypatch.setattr("service.engine_cache.GROWTH_MAX", 0)
    for engine in ENGINES:
        caplog.clear()
        assert np.isfinite(vectors(engine, small_disk)).all()
        assert "going on without it" in caplog.text
    assert not list(small_disk.iterdir())


def test_a_key_names_the_graph_the_engine_and_nothing_without_a_hash() -> None:
    key = cache_key(SPEC, "model.onnx", ["onnxruntime", "1"])
    assert key == cache_key(SPEC, "model.onnx", ["onnxruntime", "1"])
    assert key != cache_key(SPEC, "model.onnx", ["onnxruntime", "2"])
    assert cache_key(SPEC, "model_int8.onnx", ["onnxruntime", "1"]) is None


def test_old_entries_go_and_the_one_in_use_stays(tmp_path: Path) -> None:
    for number in range(ENTRIES_MAX + 2):
        old = tmp_path / f"old{number}"
        old.mkdir()
        (old / MANIFEST_FILE).write_text("{}")
        os.utime(old, (number, number))
    vectors("openvino", tmp_path)
    there = entries(tmp_path)
    assert len(there) == ENTRIES_MAX
    assert not {"old0", "old1", "old2"} & {path.name for path in there}


def test_what_killed_processes_left_unfinished_goes_and_what_another_is_making_stays(tmp_path: Path) -> None:
    left, being_made = tmp_path / f"{UNFINISHED}left", tmp_path / f"{UNFINISHED}new"
    for folder in (left, being_made):
        folder.mkdir()
        (folder / "model.blob").write_bytes(b"half")
    os.utime(left, (0, 0))
    vectors("onnx", tmp_path)
    assert not left.exists()
    assert being_made.exists()
