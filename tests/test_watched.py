"""Files that change while a process runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import KeysError
from service.watched import watch

EVERY_S = 0.01
PATIENCE_S = 20.0


class Seen:
    """What was put in force, and what was told."""

    def __init__(self) -> None:
        self.used: list[bytes] = []
        self.told: list[bool] = []

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait, within bounds."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await asyncio.sleep(EVERY_S)


def parse(contents: list[bytes]) -> bytes:
    """A file is good unless it says that it is bad."""
    if b"bad" in contents[0]:
        raise KeysError("it is bad")
    if b"fault" in contents[0]:
        raise OverflowError("a fault of the program")
    return contents[0]


def watching(path: Path, steps: Callable[[Seen], object]) -> Seen:
    """Take these steps while the file is watched."""

    async def run() -> Seen:
        seen = Seen()
        begun = [path.read_bytes()]
        task = asyncio.create_task(watch([path], begun, parse, seen.used.append, seen.told.append, every_s=EVERY_S))
        await steps(seen)  # type: ignore[misc]
        task.cancel()
        return seen

    return asyncio.run(run())


def test_a_volume_of_kubernetes_that_swaps_its_link_is_noticed(tmp_path: Path) -> None:
    # As the kubelet does it: keys.toml → ..data/keys.toml, ..data → a folder of a new name each time.
    for name, content in (("..1", b"one"), ("..2", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.toml").write_bytes(content)
        # Of the same age and size.
        os.utime(tmp_path / name / "keys.toml", (1, 1))
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "keys.toml"
    path.symlink_to("..data/keys.toml")

    async def swap(seen: Seen) -> None:
        (tmp_path / "..new").symlink_to("..2")
        os.rename(tmp_path / "..new", tmp_path / "..data")
        await seen.until(lambda: seen.used == [b"two"])

    assert watching(path, swap).told == [True]


def test_what_can_not_be_used_is_told_once_and_what_was_in_force_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(b"one")

    async def break_and_mend(seen: Seen) -> None:
        path.write_bytes(b"bad")
        await seen.until(lambda: seen.told == [False])
        await asyncio.sleep(10 * EVERY_S)
        assert seen.told == [False]
        path.unlink()
        await seen.until(lambda: seen.told == [False, False])
        # Mended to what it was: it is in force again, and said to be.
        path.write_bytes(b"one")
        await seen.until(lambda: seen.told == [False, False, True])

    assert watching(path, break_and_mend).used == [b"one"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert "is not used, what was in force stays: it is bad" in errors[0]
    assert "No such file" in errors[1]


def test_a_fault_of_the_program_does_not_end_the_watch_and_is_logged_with_its_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(b"one")

    async def meet_a_fault(seen: Seen) -> None:
        path.write_bytes(b"fault")
        await seen.until(lambda: seen.told == [False])
        path.write_bytes(b"two")
        await seen.until(lambda: seen.told == [False, True])

    assert watching(path, meet_a_fault).used == [b"two"]
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert error.exc_info is not None
    assert error.exc_info[0] is OverflowError


def test_a_file_that_is_still_being_written_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(b"one")

    async def write_slowly(seen: Seen) -> None:
        for length in range(100):
            path.write_bytes(b"x" * length)
            await asyncio.sleep(EVERY_S / 4)
        path.write_bytes(b"whole")
        await seen.until(lambda: seen.used[-1:] == [b"whole"])

    # Some 25 looks are taken meanwhile. A busy machine may make it look settled in between now and then.
    assert len(watching(path, write_slowly).used) <= 3
