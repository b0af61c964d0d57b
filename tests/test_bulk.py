"""Bulk jobs on the shipped model: what is in the files, what a kill costs, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from bulk_files import arguments, bulk, manifest, start, text, write_jsonl
from gateway_process import run_service
from numpy.typing import NDArray
from safetensors import safe_open

from service.bulk.embedded import Embedded
from service.bulk.job import Job, Wish
from service.bulk.manifest import Json
from service.bulk.merging import merge_shards
from service.bulk.parts import Parts
from service.bulk.records import Fields
from service.bulk.running import compute_here, plan_of, run_plan
from service.bulk.windows import batches_by_characters, batches_by_tokens, shard_of, windows_of_shard
from service.errors import BadInputLine, InvalidInput, OtherJob, OutputBusy, PartsMissing
from service.ready import opened
from service.recipe.spec import ModelSpec, file_sha256
from service.settings import load_settings
from service.shapes import shapes_of

Run = Callable[..., Json]
WISH = Wish("passage", "passage")


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a job to its end with an engine that stays open."""
    with asyncio.Runner() as runner:
        opening = opened(load_settings({}))
        embedder = runner.run(opening.__aenter__())

        def run_here(job: Job, *, overwrite: bool = False) -> Json:
            vectorizer = Embedded(embedder, job.wish)
            plan = plan_of(job, vectorizer.about(), exact=True)
            work = run_plan(plan, lambda plan, done: compute_here(plan, done, vectorizer), overwrite=overwrite)
            return runner.run(work)

        yield run_here
        runner.run(opening.__aexit__(None, None, None))


def job_of(source: Path, output: Path, **more: object) -> Job:
    return replace(Job(str(source), output, WISH, Fields(id="id"), window=32), **more)  # type: ignore[arg-type]


def vectors_in(path: Path) -> NDArray[np.float32]:
    """[N, D] of a Parquet file."""
    column = pq.read_table(path)["vector"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(), dtype=np.float32).reshape(len(column), -1)


def test_a_job_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 1000)
    bulk(source, tmp_path / "whole.parquet", "--with", "text,tokens,truncated")
    output, rng = tmp_path / "killed.parquet", random.Random()
    parts = Parts(output)
    stored: dict[str, int] = {}
    for wanted in sorted(rng.sample(range(1, 28), 2)):
        running = start(source, output, "--with", "text,tokens,truncated")
        give_up = time.monotonic() + 200
        while len(parts.done()) < wanted and running.poll() is None and time.monotonic() < give_up:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        running.send_signal(signal.SIGKILL)
        running.wait()
        inodes = {path.name: path.stat().st_ino for path in parts.folder.glob("part-*")}
        # What is stored is never computed again.
        assert stored.items() <= inodes.items()
        assert len(inodes) >= wanted
        stored = inodes
    said = bulk(source, output, "--with", "text,tokens,truncated")
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert len(manifest(output)["runs_s"]) >= 2  # type: ignore[arg-type]
    assert not parts.folder.exists()
    # Nobody looks at a progress bar here.
    assert "texts/s" not in said


def test_every_format_holds_the_same_vectors_in_the_order_of_the_input(tmp_path: Path, run: Run) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 100)
    for name in ("a.parquet", "a.npy", "a.safetensors"):
        run(job_of(source, tmp_path / name, columns=("text", "tokens")))
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["id"].to_pylist() == [f"d{number}" for number in range(100)]
    assert table["text"].to_pylist() == [text(number) for number in range(100)]
    vectors = vectors_in(tmp_path / "a.parquet")
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert np.array_equal(mapped, vectors)
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("vectors"), vectors)
        assert json.loads(file.metadata()["me5"])["prompt"] == "passage: "
    rows = [json.loads(line) for line in (tmp_path / "a.npy.rows.jsonl").read_text().splitlines()]
    assert rows == table.drop_columns(["vector"]).to_pylist()


def test_vectors_are_those_that_the_gateway_gives_to_passages(
    tmp_path: Path, run: Run, client: httpx.Client, least_cosine: float
) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 64)
    made = run(job_of(source, tmp_path / "a.parquet"))
    texts = [text(number) for number in range(64)]
    answer = client.post("/embed", json={"inputs": texts, "input_type": "passage"})
    cosines = (vectors_in(tmp_path / "a.parquet") * np.array(answer.json())).sum(axis=1)
    assert cosines.min() >= least_cosine
    assert made["counts"]["tokens"] == int(answer.headers["x-compute-tokens"])  # type: ignore[index]
    queries = client.post("/embed", json={"inputs": texts, "input_type": "query"}).json()
    assert (vectors_in(tmp_path / "a.parquet") * np.array(queries)).sum(axis=1).min() < least_cosine


def test_smaller_types_are_the_gateways_own(tmp_path: Path, run: Run, client: httpx.Client) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 40)
    run(job_of(source, tmp_path / "a.parquet"))
    vectors = vectors_in(tmp_path / "a.parquet")
    made = run(job_of(source, tmp_path / "a.npy", wish=replace(WISH, dtype="int8")))
    scale = client.get("/info").json()["int8_scale"]
    assert made["job"]["model"]["int8_scale"] == scale  # type: ignore[index]
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.clip(np.rint(vectors * np.float32(scale)), -127, 127))
    run(job_of(source, tmp_path / "half.parquet", wish=replace(WISH, dtype="float16", dimensions=64)))
    cut = vectors[:, :64] / np.linalg.norm(vectors[:, :64], axis=1, keepdims=True)
    assert vectors_in(tmp_path / "half.parquet") == pytest.approx(cut, abs=1e-3)


@pytest.mark.parametrize("name", ["a.parquet", "a.npy", "a.safetensors"])
def test_shards_merge_to_the_bytes_of_one_job(tmp_path: Path, run: Run, name: str) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 150)
    whole = run(job_of(source, tmp_path / name, columns=("tokens",)))
    merged = tmp_path / "shards" / name
    for shard in (2, 0):
        run(job_of(source, merged, columns=("tokens",), shard=(shard, 3)))
    with pytest.raises(PartsMissing, match="a-00001-of-00003"):
        merge_shards(merged)
    run(job_of(source, merged, columns=("tokens",), shard=(1, 3)))
    made = merge_shards(merged)
    assert merged.read_bytes() == (tmp_path / name).read_bytes()
    assert made["counts"] == whole["counts"]
    assert made["job"] == whole["job"]


def test_bad_records_stop_a_job_or_are_listed(tmp_path: Path, run: Run) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 70)
    lines = source.read_bytes().split(b"\n")
    lines[40] = b'{"id": "d40"}'
    lines[66] = b"not JSON"
    lines[3] = json.dumps({"id": "d3", "text": "many words " * 600}).encode()
    source.write_bytes(b"\n".join(lines))
    with pytest.raises(BadInputLine, match="line 41: field 'text' is missing"):
        run(job_of(source, tmp_path / "a.parquet"))
    # The window before is stored, and is gone on from: whether bad lines are skipped is no other job.
    assert Parts(tmp_path / "a.parquet").done() == [0]
    made = run(job_of(source, tmp_path / "a.parquet", skip_bad=True))
    assert [item["line"] for item in made["skipped_lines"]] == [41, 67]  # type: ignore[attr-defined]
    assert made["counts"] == {
        **made["counts"],  # type: ignore[dict-item]
        "records": 70,
        "texts": 68,
        "skipped": 2,
        "truncated": 1,
    }
    ids = pq.read_table(tmp_path / "a.parquet")["id"].to_pylist()
    assert ids == [f"d{number}" for number in range(70) if number not in (40, 66)]
    made = run(job_of(source, tmp_path / "b.parquet", skip_bad=True, wish=replace(WISH, truncate=False)))
    assert [item["line"] for item in made["skipped_lines"]] == [4, 41, 67]  # type: ignore[attr-defined]


def test_an_output_of_another_job_is_left_alone(tmp_path: Path, run: Run) -> None:
    source, output = write_jsonl(tmp_path / "corpus.jsonl", 40), tmp_path / "a.npy"
    first = run(job_of(source, output))
    assert run(job_of(source, output)) == first
    with pytest.raises(OtherJob, match="dtype was float32, is int8.*--overwrite"):
        run(job_of(source, output, wish=replace(WISH, dtype="int8")))
    write_jsonl(source, 41)
    with pytest.raises(OtherJob, match=r"input\.bytes was \d+, is \d+"):
        run(job_of(source, output))
    assert run(job_of(source, output), overwrite=True)["rows"] == 41
    parts = Parts(output)
    with parts.locked(), pytest.raises(OutputBusy, match="another process writes"):
        run(job_of(source, output))


def test_parts_of_another_job_are_not_gone_on_from(tmp_path: Path, run: Run) -> None:
    source, output = write_jsonl(tmp_path / "corpus.jsonl", 40), tmp_path / "a.npy"
    source.write_text(source.read_text() + "bad\n")
    with pytest.raises(BadInputLine):
        run(job_of(source, output))
    with pytest.raises(OtherJob, match="role was passage, is query"):
        run(job_of(source, output, wish=Wish("query", "query")))


def test_the_manifest_tells_the_truth(tmp_path: Path, run: Run, spec: ModelSpec) -> None:
    source, output = write_jsonl(tmp_path / "corpus.jsonl", 70), tmp_path / "a.parquet"
    made = run(job_of(source, output))
    assert made == manifest(output)
    assert (made["sha256"], made["bytes"]) == (file_sha256(output), output.stat().st_size)
    assert made["job"]["input"]["sha256"] == file_sha256(source)  # type: ignore[index]
    assert made["job"]["model"]["prompt"] == "passage: "  # type: ignore[index]
    assert made["job"]["model"]["graph_sha256"] in spec.files.values()  # type: ignore[index]
    assert (made["rows"], made["counts"]["windows"], made["exact"]) == (70, 3, True)  # type: ignore[index]


def test_standard_input_is_gone_on_from_only_where_it_is_the_same(tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "corpus.jsonl", 70), tmp_path / "a.parquet"
    bulk(source, tmp_path / "whole.parquet")
    lines = source.read_bytes()
    broken = run_service(*arguments("-", output, "--format", "jsonl"), stdin=lines + b"bad\n")
    assert broken.returncode == 2
    assert Parts(output).done() == [0, 1]
    other = run_service(*arguments("-", output, "--format", "jsonl"), stdin=lines.replace(b"deep", b"steep"))
    assert other.returncode == 2
    assert b"are not those that the job was begun with" in other.stderr
    bulk("-", output, "--format", "jsonl", stdin=lines)
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_no_records_make_a_file_without_rows(tmp_path: Path, run: Run) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 0)
    for name in ("a.parquet", "a.npy"):
        assert run(job_of(source, tmp_path / name))["rows"] == 0
    assert np.load(tmp_path / "a.npy").shape == (0, 768)
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


def test_batches_hold_every_text_once_and_no_more_tokens_than_they_may() -> None:
    rng = random.Random(0)
    lengths, shapes = [rng.randint(3, 512) for _ in range(500)], shapes_of("openvino", 512)
    found = batches_by_tokens(lengths, 1024, shapes)
    assert sorted(place for batch in found for place in batch) == list(range(500))
    assert all(len(batch) * shapes.width(max(lengths[place] for place in batch)) <= 1024 for batch in found)
    requests = batches_by_characters(lengths, 8, 1000)
    assert [place for batch in requests for place in batch] == list(range(500))
    assert all(len(batch) == 1 or sum(lengths[place] for place in batch) <= 1000 for batch in requests)


def test_shards_are_neighbours_and_together_the_whole() -> None:
    assert [list(windows_of_shard(7, shard, 3)) for shard in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert shard_of("3/16") == (3, 16)
    for wrong in ("16/16", "3", "-1/4", "a/b"):
        with pytest.raises(InvalidInput, match="numbered from 0"):
            shard_of(wrong)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which only root may")
def test_a_full_disk_is_told_in_one_line_and_the_job_goes_on_where_there_is_room(tmp_path: Path) -> None:
    source, disk = write_jsonl(tmp_path / "corpus.jsonl", 400), tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine mounts nothing, root or not")
    try:
        stopped = run_service(*arguments(source, disk / "a.npy"))
        assert stopped.returncode == 2
        assert [line for line in stopped.stderr.decode().splitlines() if "no space left" in line]
        assert b"Traceback" not in stopped.stderr
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        bulk(source, disk / "a.npy")
        bulk(source, tmp_path / "whole.npy")
        assert (disk / "a.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
