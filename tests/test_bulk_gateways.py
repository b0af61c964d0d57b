"""Bulk jobs by gateways elsewhere: real ones, with little room, restarted, and refusing texts."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
from bulk_files import arguments, bulk, manifest, write_jsonl
from faulty_engine import SHIPPED
from gateway_process import Gateway, run_service, start_gateway
from numpy.typing import NDArray
from test_bulk import vectors_in

from service.bulk.gateways import places_of
from service.recipe.spec import TOKENIZER_FILE
from service.recipe.tokens import load_tokenizer

FP32 = {"engine": "onnx", "precision": "fp32"}


def refusals(gateway: Gateway) -> float:
    """How many requests it has answered with 429."""
    lines = httpx.get(f"{gateway.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if "rejected_requests_total{" in line and "overloaded" in line)


def cosines(first: Path, second: Path) -> NDArray[np.float32]:
    """Of the rows of two files, one by one."""
    found: NDArray[np.float32] = (vectors_in(first) * vectors_in(second)).sum(axis=1)
    return found


def test_gateways_without_room_are_waited_for_and_give_the_vectors_of_the_engine(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 200)
    bulk(source, tmp_path / "here.parquet", "--window", "256", **FP32)
    # Room for one request at a time; of one window the job has four under way.
    with start_gateway(max_queued_tokens=100, **FP32) as small, start_gateway(max_queued_tokens=100, **FP32) as other:
        urls = ("--url", small.url, "--url", f"{other.url}/")
        bulk(source, tmp_path / "there.parquet", *urls, "--window", "256", "--with", "truncated")
        assert refusals(small) + refusals(other) > 0
        info = httpx.get(f"{small.url}/info").json()
    assert cosines(tmp_path / "here.parquet", tmp_path / "there.parquet").min() >= 0.9999
    here, there = manifest(tmp_path / "here.parquet"), manifest(tmp_path / "there.parquet")
    assert there["counts"] == here["counts"]
    assert there["exact"] is False
    model = there["job"]["model"]  # type: ignore[index]
    assert (model["name"], model["graph_sha256"]) == (info["model_id"], info["model_sha"])
    assert pq.read_table(tmp_path / "there.parquet")["id"].to_pylist() == [f"d{number}" for number in range(200)]


def test_texts_that_a_gateway_refuses_are_found_among_others(tmp_path: Path, gateway: Gateway) -> None:
    source, output = write_jsonl(tmp_path / "corpus.jsonl", 40), tmp_path / "a.npy"
    lines = source.read_text().splitlines()
    long = "many words " * 600
    lines[17] = json.dumps({"id": "d17", "text": long})
    source.write_text("\n".join(lines))
    stopped = run_service(*arguments(source, output, "--url", gateway.url, "--no-truncate"))
    assert stopped.returncode == 2
    assert b"line 18: the gateway refused it: " in stopped.stderr
    tokens = len(load_tokenizer(SHIPPED / TOKENIZER_FILE).encode(f"passage: {long}".strip()).ids)
    assert f"`inputs` must have less than 512 tokens. Given: {tokens}".encode() in stopped.stderr
    bulk(source, output, "--url", gateway.url, "--no-truncate", "--on-error", "skip", "--dtype", "int8", "--overwrite")
    made = manifest(output)
    assert [item["line"] for item in made["skipped_lines"]] == [18]  # type: ignore[attr-defined]
    model = made["job"]["model"]  # type: ignore[index]
    assert model["int8_scale"] == httpx.get(f"{gateway.url}/info").json()["int8_scale"]
    assert np.load(output).shape == (39, 768)
    assert np.load(output).dtype == np.int8
    bulk(source, output, "--url", gateway.url, "--overwrite", "--with", "truncated")
    rows = [json.loads(line) for line in output.with_name("a.npy.rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows if row["truncated"]] == ["d17"]


def test_a_gateway_that_is_not_there_ends_the_job_with_a_sentence(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 3)
    # Nobody listens on the port of discarded data.
    done = run_service(*arguments(source, tmp_path / "a.npy", "--url", "http://127.0.0.1:9"))
    assert done.returncode == 2
    assert done.stderr.decode().startswith("me5: no gateway at http://127.0.0.1:9/")


def test_the_inputs_that_a_header_names() -> None:
    assert places_of("0-2,7,30-31") == {0, 1, 2, 7, 30, 31}
    assert places_of("") == set()
