"""Optimised models on disk, so that an engine opens in a fraction of the time that optimising takes.

An entry is a folder with what one engine made of one graph, and a manifest with the SHA-256 of each of its files. It is
written beside its place and renamed, and read only if every hash agrees. Nothing here is needed to start: whatever goes
wrong with the cache (damaged, read-only, full) is one warning in the log, and the engine opens without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from service.processor import cpu_flags
from service.recipe.spec import ModelSpec, file_sha256

log = logging.getLogger("me5.engine_cache")

MANIFEST_FILE = "manifest.json"
# Weights stored in int8 and computed in fp32 take four bytes in place of one.
GROWTH_MAX = 4
# Enough for going back and forth between two versions with two engines and two precisions.
ENTRIES_MAX = 8
UNFINISHED = ".unfinished-"
# Building takes seconds, of the largest model a minute.
LEFT_BEHIND_S = 900

Opened = TypeVar("Opened")


def cache_key(spec: ModelSpec, graph: str, settings: Sequence[str]) -> str | None:
    """What an optimised model depends on, as a file name: the graph, the engine's version and options, the processor.

    None where spec.json does not hold the graph's hash, as while a version is being made.
    """
    if graph not in spec.files:
        return None
    # Weights may lie in a file beside the graph.
    files = sorted(item for item in spec.files.items() if item[0].startswith(graph))
    depends = json.dumps([files, list(settings), sorted(cpu_flags())])
    return hashlib.sha256(depends.encode()).hexdigest()[:32]


def open_cached(
    cache: Path | None,
    key: str | None,
    graph: Path,
    *,
    build: Callable[[Path], None],
    open_entry: Callable[[Path], Opened],
    open_plain: Callable[[], Opened],
) -> Opened:
    """`open_entry` on the cache's folder for the key, which `build` fills if it isn't there yet; else `open_plain`.

    graph: the model as it came; an entry is not written where it could fill the disk. Only `open_plain` may fail for
    good: its errors are the caller's.
    """
    if cache is None or key is None:
        return open_plain()
    try:
        _make_own(cache)
    except OSError as error:
        log.warning("the cache %s is not used: %s", cache, error)
        return open_plain()
    entry = cache / key
    faults: list[tuple[str, Exception]] = []
    for attempt in ("found", "built"):
        try:
            if attempt == "built":
                _build_entry(entry, graph, build)
            elif not entry.exists():
                continue
            _verify(entry)
            opened = open_entry(entry)
        except Exception as error:  # the engines raise classes of their own, none of them public
            faults.append((attempt, error))
            shutil.rmtree(entry, ignore_errors=True)
            continue
        _mark_used(entry)
        break
    else:
        # A model that can't be opened at all is no fault of the cache's: its error says it, once.
        opened = open_plain()
    for attempt, fault in faults:
        log.warning("the cached model %s can't be %s: %s; going on without it", entry, attempt, fault)
    return opened


def _make_own(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = cache.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
        # An optimised model is as good as a program: whoever can write one decides what this process computes.
        raise OSError("others may write there; chmod it to 700, or set ME5_CACHE_DIR to a folder of your own")


def _build_entry(entry: Path, graph: Path, build: Callable[[Path], None]) -> None:
    wanted = GROWTH_MAX * sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
    free = shutil.disk_usage(entry.parent).free
    if free < wanted:
        raise OSError(f"{free:,} bytes are free, {wanted:,} are wanted; make room or set ME5_CACHE_DIR elsewhere")
    _remove_left_behind(entry.parent)
    staging = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=entry.parent))
    try:
        build(staging)
        hashes = {path.name: file_sha256(path) for path in sorted(staging.iterdir())}
        (staging / MANIFEST_FILE).write_text(json.dumps(hashes), encoding="utf-8")
        _rename(staging, entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _remove_oldest(entry.parent)


def _remove_left_behind(cache: Path) -> None:
    """What processes that were killed had begun: where each start is killed, they would fill the disk."""
    for folder in cache.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > LEFT_BEHIND_S:
                shutil.rmtree(folder, ignore_errors=True)


def _rename(staging: Path, entry: Path) -> None:
    try:
        staging.rename(entry)
    except OSError:
        # Two gateways started at once, and the other was faster: what it wrote is the same.
        if not (entry / MANIFEST_FILE).is_file():
            raise


def _verify(entry: Path) -> None:
    hashes = json.loads((entry / MANIFEST_FILE).read_text(encoding="utf-8"))
    for name, expected in hashes.items():
        path = entry / name
        status = path.stat()
        if _hash_once(path, status.st_size, status.st_mtime_ns) != expected:
            raise OSError(f"{path} is damaged")


@lru_cache(maxsize=32)
def _hash_once(path: Path, size: int, changed_ns: int) -> str:  # noqa: ARG001
    # An engine with all threads and one of streams are opened from the same entry, one after the other.
    return file_sha256(path)


def _mark_used(entry: Path) -> None:
    try:
        os.utime(entry)
    except OSError:
        return  # a cache that can only be read is as good as any


def _remove_oldest(cache: Path) -> None:
    entries = [path.parent for path in cache.glob(f"*/{MANIFEST_FILE}")]
    for entry in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)[ENTRIES_MAX:]:
        shutil.rmtree(entry, ignore_errors=True)
