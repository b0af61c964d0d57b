"""python -m service, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from gateway_process import run_service

from service.recipe.spec import ModelSpec


def test_help_names_every_command() -> None:
    done = run_service("--help")
    assert done.returncode == 0
    for command in ("serve", "check", "embed", "merge", "pull", "triton-config"):
        assert command in done.stdout.decode()


def test_a_command_that_is_none_is_refused() -> None:
    done = run_service("srve")
    assert done.returncode == 2
    assert b"srve" in done.stderr
    assert b"Traceback" not in done.stderr


def test_check_prints_the_settings_and_proves_the_model(spec: ModelSpec, shipped: Path) -> None:
    done = run_service("check", engine="onnx", default_role="passage")
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    settings, about = text[: text.index("{")].splitlines(), json.loads(text[text.index("{") :])
    assert "ME5_DEFAULT_ROLE=passage" in settings
    assert "ME5_PORT=8080" in settings
    assert all(line.startswith("ME5_") for line in settings)
    assert (about["name"], about["version"], about["engine"]) == (spec.name, shipped.name, "onnx")
    assert float(about["golden_cosine"]) >= 0.98


def test_check_ends_with_2_where_serve_would() -> None:
    done = run_service("check", model="nope")
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1].startswith("me5: no model 'nope'")


def test_embed_reads_lines_and_gives_the_servers_vectors(client: httpx.Client, least_cosine: float) -> None:
    lines = ["Größe", "東京の人口", "many words " * 600]
    done = run_service("embed", "--role", "search_document", stdin="\n".join([lines[0], "", *lines[1:]]) + "\n")
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [row["text"] for row in rows] == lines
    assert [row["truncated"] for row in rows] == [False, False, True]
    served = client.post("/embed", json={"inputs": lines, "input_type": "passage"})
    assert sum(row["tokens"] for row in rows) == int(served.headers["x-compute-tokens"])
    vectors = np.array([row["vector"] for row in rows])
    assert (vectors * np.array(served.json())).sum(axis=1).min() >= least_cosine


def test_embed_takes_its_texts_as_arguments_too(spec: ModelSpec) -> None:
    done = run_service("embed", "one", "two words")
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [row["text"] for row in rows] == ["one", "two words"]
    assert [len(row["vector"]) for row in rows] == [spec.dimension] * 2


def test_an_unknown_role_is_refused_with_the_known_ones() -> None:
    done = run_service("embed", "--role", "title", "a text")
    assert done.returncode == 2
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert lines[-1].startswith("me5: unknown input_type 'title'; use one of query, passage")
    assert "Traceback" not in done.stderr.decode()


def test_embed_of_bytes_that_are_no_text_is_refused() -> None:
    done = run_service("embed", stdin=b"good\n\xff\xfe\n")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr.decode()
    assert "UTF-8" in done.stderr.decode()


def test_pulling_without_a_network_is_one_line_that_says_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody listens on the port of discarded data.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    finished = run_service("pull", "intfloat/multilingual-e5-small", model_repo=tmp_path)
    assert finished.returncode == 2
    (line,) = finished.stderr.decode().splitlines()
    assert line.startswith("me5: can't fetch intfloat/multilingual-e5-small")
    assert "pull FOLDER --as intfloat/multilingual-e5-small" in line
    assert not list(tmp_path.iterdir())
