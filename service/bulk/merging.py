"""Shards to the one file that a single worker would have written, byte for byte."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pyarrow as pa

from service.bulk.job import differences, shard_file
from service.bulk.manifest import (
    Json,
    Tally,
    finished_before,
    manifest_file,
    manifest_of,
    read_manifest,
    tally_of,
    write_manifest,
)
from service.bulk.outputs import layout_of, read_windows, rows_file, write_output
from service.bulk.parts import Parts
from service.errors import PartsMissing

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


def merge_shards(output: Path, *, overwrite: bool = False) -> Json:
    """Join the shards of a job. They stay. Returns the manifest.

    Raises PartsMissing where a shard is not whole, or of another job than the rest, and OutputBusy and OtherJob.
    """
    files = _shards(output)
    manifests = [_manifest(path) for path in files]
    identity = _common(files, manifests)
    parts = Parts(output)
    with parts.locked():
        if overwrite:
            for path in (manifest_file(output), rows_file(output), output):
                path.unlink(missing_ok=True)
        found = finished_before(output, identity) or _merge(output, files, manifests, identity)
        parts.remove()
        return found


def _merge(output: Path, files: Sequence[Path], manifests: Sequence[Json], identity: Json) -> Json:
    figures = Tally()
    for manifest in manifests:
        figures.join(tally_of(manifest))

    def tables() -> Iterator[pa.Table]:
        for path, manifest in zip(files, manifests, strict=True):
            yield from read_windows(path, layout_of(identity, cast(int, manifest["rows"])))

    started = time.monotonic()
    write_output(output, layout_of(identity, figures.texts), tables())
    manifest = manifest_of(
        output,
        identity,
        str(manifests[0]["input_name"]),
        figures,
        exact=all(bool(manifest["exact"]) for manifest in manifests),
        joining_s=time.monotonic() - started,
    )
    write_manifest(output, manifest)
    return manifest


def _shards(output: Path) -> list[Path]:
    """The files of an output's shards, all of them, in order."""
    there = {
        int(found[2])
        for path in output.parent.glob(f"{output.stem}-*-of-*{output.suffix}")
        if (found := _SHARD.search(path.stem)) and path.stem == output.stem + found[0]
    }
    if len(there) != 1:
        counts = ", ".join(map(str, sorted(there))) or "none"
        raise PartsMissing(
            f"{output.parent} holds shards of {output.name} in numbers of: {counts}; keep those of one job"
        )
    (count,) = there
    files = [shard_file(output, shard, count) for shard in range(count)]
    missing = [path.name for path in files if read_manifest(path) is None]
    if missing:
        raise PartsMissing(f"not whole yet: {', '.join(missing)}; run those shards to their ends")
    return files


def _manifest(path: Path) -> Json:
    found = read_manifest(path)
    assert found is not None
    return found


def _common(files: Sequence[Path], manifests: Sequence[Json]) -> Json:
    """The identity of the whole job."""
    jobs = [cast(Json, manifest["job"]) | {"shard": None} for manifest in manifests]
    for path, job in zip(files, jobs, strict=True):
        other = differences(jobs[0], job)
        if other:
            raise PartsMissing(f"{path.name} is not of the job of {files[0].name}: {'; '.join(other)}; run it again")
    return jobs[0]
