"""Bulk jobs on Ray: the same windows, parts and bytes as of one process, computed by many.

As a pipeline of one's own, on any data set with a column of texts:

    ray.data.read_parquet("s3://…").map_batches(
        EmbedTexts,
        fn_constructor_kwargs={"role": "passage"},
        batch_size=4096,
        compute=ray.data.ActorPoolStrategy(size=8),
        num_cpus=2,
    )

Source: docs.ray.io, "Batch inference", and the reference of Dataset.map_batches.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from service.api.encoding import Dtype
from service.bulk.embedded import Embedded
from service.bulk.job import Job, Wish, differences
from service.bulk.manifest import Json
from service.bulk.pipeline import Pipeline
from service.bulk.progress import Progress
from service.bulk.reading import STDIN, open_records
from service.bulk.records import BadRecord, Record
from service.bulk.running import Compute, Plan, plan_of, run_plan, wanted_of
from service.bulk.window_reader import WindowReader
from service.errors import BadInputLine, InvalidInput, OtherJob
from service.ready import opened
from service.recipe.prompts import role_of
from service.settings import Settings, load_settings

Rows = dict[str, NDArray[np.generic]]
# A worker gets so many windows in one call, while there is enough for everybody: within a call it reads one while it
# computes another.
WINDOWS_A_CALL = 4
# The folder that `service` is imported from, for workers that Ray starts elsewhere on this machine.
_ROOT = Path(__file__).resolve().parent.parent.parent


class _Opened:
    """An engine that stays open between a worker's calls."""

    def __init__(self, settings: Settings, wish: Wish) -> None:
        self.runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        embedder = self.runner.run(self._stack.enter_async_context(opened(settings)))
        self.vectorizer = Embedded(embedder, wish)

    def close(self) -> None:
        """End the engine."""
        self.runner.run(self._stack.aclose())
        self.runner.close()


class EmbedTexts:
    """For Dataset.map_batches: adds the column "vector" to a batch with a column of texts.

    Texts of a batch are sorted by length among themselves: batches of some thousand have the least padding. Without
    settings, each worker reads its own machine's, with as many threads as Ray gave it cores.
    """

    def __init__(
        self,
        role: str,
        *,
        text_field: str = "text",
        instruction: str | None = None,
        dimensions: int | None = None,
        dtype: Dtype = "float32",
        settings: Settings | None = None,
    ) -> None:
        wish = Wish(role_of(role), role, instruction, None, dimensions, dtype)
        self._opened = _Opened(settings or _of_worker(load_settings()), wish)
        self._text_field = text_field

    def __call__(self, batch: Rows) -> Rows:
        """The batch with its vectors [N, D]. Raises BadInputLine, with the row in the batch, where one has none."""
        vectorizer = self._opened.vectorizer
        records = [Record(str(row), str(text), row + 1) for row, text in enumerate(batch[self._text_field])]
        prepared = []
        for item in vectorizer.prepare(records, keep_text=False):
            if isinstance(item, BadRecord):
                raise BadInputLine("batch", item.line, item.reason)
            prepared.append(item)

        async def compute() -> NDArray[np.generic]:
            free = asyncio.Semaphore(vectorizer.in_flight)

            async def run(places: list[int]) -> None:
                async with free:
                    found[places] = (await vectorizer.run([prepared[place] for place in places])).vectors

            found: NDArray[np.generic] = np.zeros((len(prepared), vectorizer.dimension), dtype=vectorizer.wish.dtype)
            async with asyncio.TaskGroup() as tasks:
                for places in vectorizer.batches(prepared):
                    tasks.create_task(run(places))
            return found

        return {**batch, "vector": self._opened.runner.run(compute())}


@dataclass(frozen=True)
class _Run:
    """What every worker of a job needs to know."""

    plan: Plan
    settings: Settings
    name: str
    started: float


class _EmbedWindows:
    """For Dataset.map_batches: computes and stores the windows whose numbers it gets."""

    def __init__(self, run: _Run) -> None:
        self._run, self._opened = run, _Opened(run.settings, run.plan.job.wish)
        other = differences(run.plan.identity["model"], dict(self._opened.vectorizer.about()))
        if other:
            raise OtherJob(f"a worker computes otherwise than the machine that began the job: {'; '.join(other)}")
        self._source = ExitStack()
        self._reader: WindowReader | None = None
        self._next = 0

    def __call__(self, batch: Rows) -> Rows:
        plan, numbers = self._run.plan, batch["window"].tolist()
        pipeline = Pipeline(
            plan.job,
            self._opened.vectorizer,
            plan.parts,
            plan.layout,
            Progress(None),
            run=self._run.name,
            started=self._run.started,
        )
        self._opened.runner.run(pipeline.compute(self._reader_for(numbers[0]), numbers))
        self._next = numbers[-1] + 1
        abouts = [plan.parts.about(number) for number in numbers]
        return {
            "window": batch["window"],
            "records": np.array([about.records for about in abouts]),
            "tokens": np.array([about.tokens for about in abouts]),
        }

    def _reader_for(self, first: int) -> WindowReader:
        """The input, read on from where it is: from its beginning only where a lost worker's windows come back."""
        if self._reader is None or first < self._next:
            self._source.close()
            plan = self._run.plan
            opening = open_records(plan.job.source, plan.job.fields, form=plan.job.form)
            records = self._source.enter_context(opening)
            vectorizer = self._opened.vectorizer
            self._reader = WindowReader(plan.job, plan.source, records, vectorizer, plan.parts.records_sha256)
        return self._reader


def run_on_ray(job: Job, settings: Settings, *, workers: int, overwrite: bool = False) -> Json:
    """A bulk job by so many workers of the Ray cluster there is, or of one on this machine. Returns the manifest.

    Input and output are paths that every worker sees. Each has an engine of its own and its share of the cores.
    """
    if job.source == STDIN:
        raise InvalidInput("workers read the input by themselves, so it has to be a file: standard input is not")
    # Workers have working folders of their own.
    job = replace(job, source=str(Path(job.source).resolve()), output=job.output.resolve())
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(_ROOT)}})
    ray.data.DataContext.get_current().enable_progress_bars = False
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    settings = settings.model_copy(update={"threads": cores, "streams": cores})
    about = asyncio.run(_about(settings, job.wish))

    def pass_on(plan: Plan, done: list[int]) -> None:
        numbers = list(wanted_of(plan, done))
        if not numbers:
            return
        run = _Run(plan, settings, uuid.uuid4().hex, time.time())
        call = max(1, min(WINDOWS_A_CALL, len(numbers) // (2 * workers)))
        calls = -(-len(numbers) // call)
        windows = ray.data.from_items([{"window": number} for number in numbers], override_num_blocks=calls)
        pipeline = windows.map_batches(
            _EmbedWindows,
            fn_constructor_args=(run,),
            batch_size=call,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cores,
        )
        with closing(Progress(len(numbers) * job.window)) as progress:
            for rows in pipeline.iter_batches(batch_size=None):
                progress.advance(int(rows["records"].sum()), int(rows["tokens"].sum()))

    # Ray's iterators wait without an event loop.
    compute: Compute = lambda plan, done: asyncio.to_thread(pass_on, plan, done)  # noqa: E731
    return asyncio.run(run_plan(plan_of(job, about, exact=True), compute, overwrite=overwrite))


async def _about(settings: Settings, wish: Wish) -> Mapping[str, object]:
    """What this machine computes with; every worker's must be the same."""
    async with opened(settings) as embedder:
        return Embedded(embedder, wish).about()


def _of_worker(settings: Settings) -> Settings:
    """The settings with as many threads as Ray gave this worker cores, where they don't say."""
    cores = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)) or 1
    return settings if settings.threads else settings.model_copy(update={"threads": cores, "streams": cores})
