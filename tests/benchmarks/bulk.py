"""A bulk job beside its own engine, its memory over time, and what five kills do to its output.

    python tests/benchmarks/bulk.py --data DIR --texts 200000 --rounds 10 --kills 5

rate     the texts in as many pieces as there are rounds. Of each piece, first the engine alone: texts tokenised and
         sorted by length beforehand, all of the piece at once, batches padded beforehand, the streams computing one
         after another; then the job: reading, tokenising, computing, storing, joining. Wall time and CPU time of both,
         the engine's process included; the ratio's median over the pieces.
memory   the whole job as a user types it; resident memory of its two processes all the while.
kills    the same again, killed (SIGKILL) at random times; the output must be the same, byte for byte.

Texts are the queries and positives of DIR/train, spread over all files. Files it writes are temporary.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import orjson
import psutil
from machine import describe

from service.bulk.embedded import CPU_BATCH_TOKENS, Embedded
from service.bulk.job import Job, Wish
from service.bulk.parts import Parts
from service.bulk.reading import Fields, open_records, read_records
from service.bulk.running import compute_here, plan_of, run_plan
from service.bulk.windows import batches_by_tokens
from service.engine import Engine, open_engine, vectors_of
from service.ready import opened
from service.recipe.prompts import format_text
from service.recipe.spec import TOKENIZER_FILE
from service.recipe.tokens import TokenBatch, load_tokenizer, pad, tokenize
from service.settings import load_settings
from service.shapes import shapes_of

ROOT = Path(__file__).resolve().parent.parent.parent
SIDES = ("query", "positive")
WISH = Wish("passage", "passage")
SAMPLE_S = 0.5
# Of a line of the table of memory.
MEMORY_POINTS = 20


@dataclass(frozen=True)
class Spent:
    """What one arm took for a piece of texts."""

    wall_s: float
    cpu_s: float


def texts_of(data: Path, count: int) -> list[str]:
    """So many texts, evenly spread over the training files, in a random order that is always the same."""
    files = sorted((data / "train").glob("*.jsonl.gz"))
    pairs = 0
    for path in files:
        with open_records(path, Fields(SIDES[0])) as records:
            pairs += records.skip(1 << 62)
    wanted = set(random.Random(0).sample(range(pairs * len(SIDES)), count))
    places = itertools.count()
    found = [
        record.text
        for side in SIDES
        for path in files
        for record in read_records(path, Fields(side))
        if next(places) in wanted
    ]
    random.Random(0).shuffle(found)
    return found


def write_corpus(path: Path, texts: Sequence[str]) -> Path:
    with path.open("wb") as stream:
        for number, text in enumerate(texts):
            stream.write(orjson.dumps({"id": f"d{number}", "text": text}) + b"\n")
    return path


def cpu_s() -> float:
    """CPU seconds of this process and of those it started."""
    times = psutil.Process().cpu_times()
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return times.user + times.system + sum(item.user + item.system for item in children)


class Alone:
    """The engine in a loop: `streams` threads that compute padded batches, and do nothing else."""

    def __init__(self, vectorizer: Embedded, engine: Engine, streams: int) -> None:
        self._model, self._engine, self._streams = vectorizer.model, engine, streams
        # Its own: the job's remembers words, and would find those of the piece there already.
        self._tokenizer = load_tokenizer(vectorizer.model.folder / TOKENIZER_FILE)

    def batches(self, texts: Sequence[str]) -> list[TokenBatch]:
        """Texts tokenised, sorted by length as a whole, and padded."""
        spec = self._model.spec
        rows = tokenize(self._tokenizer, [format_text(text, spec.prompts, WISH.role) for text in texts], 512)
        shapes = shapes_of(self._engine.name, spec.max_tokens)
        lengths = [len(row.ids) for row in rows]
        return [
            pad([rows[place].ids for place in places], spec.pad_id, shapes.width(lengths[places[0]]))
            for places in batches_by_tokens(lengths, CPU_BATCH_TOKENS, shapes)
        ]

    def run(self, texts: Sequence[str]) -> Spent:
        waiting = iter(self.batches(texts))
        lock = threading.Lock()

        def stream() -> None:
            while True:
                with lock:
                    batch = next(waiting, None)
                if batch is None:
                    return
                vectors_of(self._engine.run(batch), batch)

        threads = [threading.Thread(target=stream) for _ in range(self._streams)]
        started, before = time.monotonic(), cpu_s()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Spent(time.monotonic() - started, cpu_s() - before)


async def run_job(vectorizer: Embedded, corpus: Path, output: Path) -> Spent:
    """The job, from the file to the file, by an engine that is open already."""
    started, before = time.monotonic(), cpu_s()
    job = Job(str(corpus), output, WISH, Fields(id="id"))
    plan = plan_of(job, vectorizer.about(), exact=True)
    await run_plan(plan, lambda plan, done: compute_here(plan, done, vectorizer))
    return Spent(time.monotonic() - started, cpu_s() - before)


async def compare(texts: Sequence[str], rounds: int, folder: Path) -> None:
    """Both arms on each piece; prints the ratios."""
    settings = load_settings()
    wall, cpu = [], []
    async with opened(settings) as embedder:
        vectorizer = Embedded(embedder, WISH)
        about, streams = vectorizer.about(), embedder.engine.streams  # type: ignore[union-attr]
        engine = open_engine(
            embedder.model.folder,
            embedder.model.spec,
            engine=about["engine"],  # type: ignore[arg-type]
            precision=about["precision"],  # type: ignore[arg-type]
            threads=streams,
            streams=streams,
            cache=settings.cache_dir,
        )
        alone = Alone(vectorizer, engine, streams)
        print(f"engine {about['engine']} {about['precision']}, {streams} streams, {CPU_BATCH_TOKENS} tokens a batch")
        # The first texts of a process find caches cold; they are counted in neither arm.
        alone.run(texts[:2000])
        await run_job(vectorizer, write_corpus(folder / "warm.jsonl", texts[:2000]), folder / "warm.parquet")
        for number in range(rounds):
            piece = texts[len(texts) * number // rounds : len(texts) * (number + 1) // rounds]
            raw = alone.run(piece)
            corpus = write_corpus(folder / f"piece{number}.jsonl", piece)
            job = await run_job(vectorizer, corpus, folder / f"piece{number}.parquet")
            wall.append(raw.wall_s / job.wall_s)
            cpu.append(raw.cpu_s / job.cpu_s)
            alone_per_s, job_per_s = len(piece) / raw.wall_s, len(piece) / job.wall_s
            print(
                f"  piece {number}: texts a second {alone_per_s:5.0f} alone, {job_per_s:5.0f} job, {wall[-1]:.3f}; a "
                f"CPU second {len(piece) / raw.cpu_s:5.0f} alone, {len(piece) / job.cpu_s:5.0f} job, {cpu[-1]:.3f}",
                flush=True,
            )
        engine.close()
    print(
        f"job / engine alone, median of {rounds}: wall {statistics.median(wall):.3f}, CPU {statistics.median(cpu):.3f}"
    )


def command(corpus: Path, output: Path) -> list[str]:
    arguments = ["--input", str(corpus), "--output", str(output), "--id-field", "id", "--role", "passage"]
    return [sys.executable, "-m", "service", "embed", *arguments]


def memory_of(process: psutil.Process) -> tuple[float, float]:
    """MiB resident of a command, and of the engine's process that it started."""
    try:
        children = [child.memory_info().rss for child in process.children(recursive=True)]
        return process.memory_info().rss / 2**20, sum(children) / 2**20
    except psutil.Error:
        return 0.0, 0.0


def undisturbed(corpus: Path, output: Path) -> None:
    """The whole job; prints its memory over time."""
    running = subprocess.Popen(command(corpus, output), cwd=ROOT, stdout=subprocess.DEVNULL)
    watched, started = psutil.Process(running.pid), time.monotonic()
    samples: list[tuple[float, float, float]] = []
    while running.poll() is None:
        samples.append((time.monotonic() - started, *memory_of(watched)))
        time.sleep(SAMPLE_S)
    assert running.returncode == 0
    manifest = json.loads(output.with_name(f"{output.name}.manifest.json").read_text())
    print(
        f"whole job: {manifest['rows']} texts, {manifest['counts']['tokens']} tokens, "
        f"{manifest['texts_per_s']} texts/s, {manifest['tokens_per_s']} tokens/s, {manifest['bytes'] / 2**20:.0f} MiB"
    )
    print("  seconds: MiB resident of the command + the engine's process")
    for seconds, ours, engines in samples[:: max(1, len(samples) // MEMORY_POINTS)]:
        print(f"  {seconds:6.0f}: {ours:5.0f} + {engines:5.0f}")
    halves = samples[len(samples) // 10 : len(samples) // 2], samples[len(samples) // 2 :]
    means = [statistics.mean(ours + engines for _, ours, engines in half) for half in halves]
    peak = max(ours + engines for _, ours, engines in samples)
    print(f"  peak {peak:.0f} MiB; mean of the first half {means[0]:.0f}, of the second {means[1]:.0f}", flush=True)


def killed(corpus: Path, output: Path, kills: int, wanted: Path, seed: int) -> None:
    """The same job, killed at random times, at most once a window; prints whether the bytes are the same."""
    rng = random.Random(seed)
    windows = json.loads(wanted.with_name(f"{wanted.name}.manifest.json").read_text())["counts"]["windows"]
    parts, kills = Parts(output), min(kills, windows - 1)
    for number, enough in enumerate(sorted(rng.sample(range(windows - 1), kills)), start=1):
        running = subprocess.Popen(command(corpus, output), cwd=ROOT, stdout=subprocess.DEVNULL)
        while not parts.folder.exists() or len(parts.done()) < enough:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        assert running.poll() is None, "it ended before it was killed"
        running.send_signal(signal.SIGKILL)
        running.wait()
        print(f"  kill {number}: {len(parts.done())} of {windows} windows are stored", flush=True)
    subprocess.run(command(corpus, output), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    same = subprocess.run(["cmp", str(wanted), str(output)], check=False).returncode == 0
    runs = json.loads(output.with_name(f"{output.name}.manifest.json").read_text())["runs_s"]
    print(f"killed {kills} times, {len(runs)} runs stored windows: the output is {'the same' if same else 'ANOTHER'}")
    if not same:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(describe()), "load", os.getloadavg()[0])
    texts = texts_of(args.data, args.texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.rounds:
            asyncio.run(compare(texts, args.rounds, folder))
        corpus = write_corpus(folder / "corpus.jsonl", texts)
        del texts
        undisturbed(corpus, folder / "whole.parquet")
        killed(corpus, folder / "killed.parquet", args.kills, folder / "whole.parquet", args.seed)


if __name__ == "__main__":
    main()
