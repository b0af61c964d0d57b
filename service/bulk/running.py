"""A job from its beginning, or from where it was cut off, to a whole file with its manifest."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from service.bulk.computing import Vectorizer
from service.bulk.job import Job, Source, identity_of, survey
from service.bulk.manifest import Json, finished_before, manifest_file, manifest_of, tally, write_manifest
from service.bulk.outputs import Layout, layout_of, rows_file, write_output
from service.bulk.parts import Parts
from service.bulk.pipeline import Pipeline
from service.bulk.progress import Progress
from service.bulk.reading import open_records
from service.bulk.window_reader import WindowReader
from service.bulk.windows import window_count, windows_of_shard


@dataclass(frozen=True)
class Plan:
    """A job together with all that its output's bytes follow from. windows: None where nobody can know."""

    job: Job
    source: Source
    identity: dict[str, object]
    layout: Layout
    exact: bool
    windows: range | None

    @property
    def parts(self) -> Parts:
        """Where its finished windows are."""
        return Parts(self.job.target)


Compute = Callable[[Plan, list[int]], Awaitable[None]]


def plan_of(job: Job, about: Mapping[str, object], *, exact: bool) -> Plan:
    """What is to be done, for a model that says this about itself."""
    source = survey(job)
    identity = identity_of(job, source, about)
    windows = None if source.records is None else range(window_count(source.records, job.window))
    if windows is not None and job.shard is not None:
        windows = windows_of_shard(len(windows), *job.shard)
    return Plan(job, source, identity, layout_of(identity), exact, windows)


async def run_plan(plan: Plan, compute: Compute, *, overwrite: bool = False) -> Json:
    """Compute what is not there yet by `compute`, and make the output of it. Returns the manifest.

    Raises OutputBusy, OtherJob, and what ends the computing: the same call goes on from there.
    """
    target, parts = plan.job.target, plan.parts
    target.parent.mkdir(parents=True, exist_ok=True)
    with parts.locked():
        if overwrite:
            parts.clear()
            for path in (manifest_file(target), rows_file(target), target):
                path.unlink(missing_ok=True)
        before = finished_before(target, plan.identity)
        if before is not None:
            parts.remove()
            return before
        parts.begin(plan.identity)
        await compute(plan, parts.done())
        manifest = _finish(plan, parts)
        parts.remove()
        return manifest


async def compute_here(plan: Plan, done: Iterable[int], vectorizer: Vectorizer) -> None:
    """The windows that are not done, in this process."""
    total = None if plan.windows is None else _records(plan, plan.windows)
    finished = sum(plan.parts.about(window).records for window in done)
    with (
        open_records(plan.job.source, plan.job.fields, form=plan.job.form) as records,
        closing(Progress(total, finished)) as progress,
    ):
        reader = WindowReader(plan.job, plan.source, records, vectorizer, plan.parts.records_sha256)
        pipeline = Pipeline(plan.job, vectorizer, plan.parts, plan.layout, progress)
        await pipeline.compute(reader, wanted_of(plan, done))


def wanted_of(plan: Plan, done: Iterable[int]) -> Iterator[int]:
    """The windows that are left; without end where nobody knows how many there are."""
    there = set(done)
    return (number for number in (itertools.count() if plan.windows is None else plan.windows) if number not in there)


def _records(plan: Plan, windows: range) -> int:
    """Records in a run of windows."""
    total = plan.source.records or 0
    return max(0, min(total, windows.stop * plan.job.window) - windows.start * plan.job.window)


def _finish(plan: Plan, parts: Parts) -> Json:
    target = plan.job.target
    numbers = parts.done()
    figures = tally(parts.about(number) for number in numbers)

    def tables() -> Iterator[pa.Table]:
        for number in numbers:
            yield parts.read(number)

    started = time.monotonic()
    write_output(target, layout_of(plan.identity, figures.texts), tables())
    manifest = manifest_of(
        target, plan.identity, plan.source.name, figures, exact=plan.exact, joining_s=time.monotonic() - started
    )
    write_manifest(target, manifest)
    return manifest
