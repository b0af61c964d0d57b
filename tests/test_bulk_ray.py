"""Bulk jobs on a Ray of this machine: two workers, the bytes of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bulk_files import arguments, bulk, text, write_jsonl
from gateway_process import ROOT, environment
from test_bulk import vectors_in

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]', or make test-tools")

# Ray's own processes, and two workers that read a model each, on a machine that may be busy.
RAY_MAX_S = 240


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process, beside its input, corpus.jsonl."""
    folder = tmp_path_factory.mktemp("alone")
    bulk(write_jsonl(folder / "corpus.jsonl", 200), folder / "alone.parquet")
    return folder / "alone.parquet"


def test_two_workers_write_the_bytes_of_one_process(tmp_path: Path, alone: Path) -> None:
    output = tmp_path / "ray.parquet"
    # No key for a cluster that nobody else can reach, and none left in the home of who runs the tests.
    settings = environment() | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "service", *arguments(alone.with_name("corpus.jsonl"), output, "--ray", "2")]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, timeout=RAY_MAX_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert output.read_bytes() == alone.read_bytes()


def test_a_data_sets_batches_get_a_column_of_vectors(alone: Path) -> None:
    from service.bulk.ray_job import EmbedTexts
    from service.settings import load_settings

    embed = EmbedTexts("passage", settings=load_settings({}))
    # As many as a window has: the same texts beside one another give the same bytes.
    batch = {"text": np.array([text(number) for number in range(32)], dtype=object), "id": np.arange(32)}
    found = embed(batch)
    assert set(found) == {"text", "id", "vector"}
    assert np.array_equal(found["vector"], vectors_in(alone)[:32])
