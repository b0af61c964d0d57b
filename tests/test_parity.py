"""The whole road: train by the command, export by the command, serve, and get over HTTP what the checkpoint gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from gateway_process import ROOT, start_gateway
from sentence_transformers import SentenceTransformer
from tiny_checkpoint import write_tiny_checkpoint

from training.export import export

DATA = Path(__file__).resolve().parent / "data"

TEXTS = [
    "tea",
    "Warum schmeckt Tee bitter?",
    "Почему чай становится горьким?",
    "茶为什么会变苦？",
    "لماذا يصبح الشاي مرا؟",
    "a longer text, so that the short ones above are padded in its batch: " + "tea and water, " * 12,
    "a text that is cut: " + "wind and weather " * 600,
    "🙂 x² — “quoted” 3.14 %",
]
# Trained for a few steps, a model hardly looks at its prompt yet; one of random weights does, so that a wrong prompt
# shows. Bounds: sums of float32 in another order; int8 rounds each weight by up to 0.4 % of the largest of its channel.
CASES = [
    ("trained", "float32", "onnx-fp32", 0.9999),
    ("trained", "int8", "onnx-fp32", 0.999),
    ("bert", "float32", "onnx-fp32", 0.9999),
    ("bert", "float32", "openvino-fp32", 0.9999),
    # On a CPU without bf16 OpenVINO computes in fp32 all the same.
    ("bert", "float32", "openvino-bf16", 0.999),
    ("bert", "int8", "openvino-fp32", 0.999),
    ("xlm-roberta", "float32", "onnx-fp32", 0.9999),
]


@dataclass(frozen=True)
class Served:
    """A gateway in front of an exported version, and the checkpoint it came from."""

    url: str
    checkpoint: SentenceTransformer
    least_cosine: float
    tells_roles_apart: bool
    exact: bool

    def embed(self, texts: list[str], role: str) -> np.ndarray:
        answer = httpx.post(f"{self.url}/embed", json={"inputs": texts, "input_type": role}, timeout=60)
        assert answer.status_code == 200, answer.text
        return np.array(answer.json())


def run(*arguments: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "training", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few steps of the real recipe on the pairs in tests/data, by the command; and two of random weights."""
    top = tmp_path_factory.mktemp("checkpoints")
    run("bootstrap", str(DATA / "toy.toml"), "--data", str(DATA), "--out", str(top / "run"))
    return {
        "trained": top / "run" / "latest",
        "bert": write_tiny_checkpoint(top / "bert", "bert"),
        "xlm-roberta": write_tiny_checkpoint(top / "xlm-roberta", "xlm-roberta"),
    }


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case[:3]))
def served(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    kind, weights, computed_by, least_cosine = request.param
    engine, precision = computed_by.split("-")
    checkpoint, repo = checkpoints[kind], tmp_path_factory.mktemp("repo")
    export(checkpoint, name="toy", model_repo=repo, weights=weights)
    with start_gateway(model="toy", model_repo=repo, engine=engine, precision=precision) as gateway:
        yield Served(
            gateway.url,
            SentenceTransformer(str(checkpoint), device="cpu", trust_remote_code=True),
            least_cosine,
            kind != "trained",
            precision == "fp32",
        )


@pytest.mark.parametrize("role", ["query", "passage"])
def test_vectors_over_http_equal_sentence_transformers_on_the_checkpoint(served: Served, role: str) -> None:
    found = served.embed(TEXTS, role)
    wanted = served.checkpoint.encode([f"{role}: {text}" for text in TEXTS], normalize_embeddings=True)
    assert (found * wanted).sum(axis=1).min() >= served.least_cosine
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("role", ["query", "passage"])
def test_the_checkpoints_own_prompts_are_the_servers(served: Served, role: str) -> None:
    wanted = served.checkpoint.encode(TEXTS, prompt_name=role)
    assert (served.embed(TEXTS, role) * wanted).sum(axis=1).min() >= served.least_cosine


def test_a_text_alone_equals_the_same_text_in_a_batch(served: Served) -> None:
    together = served.embed(TEXTS, "query")
    alone = np.concatenate([served.embed([text], "query") for text in TEXTS])
    # bf16 rounds to eight bits of mantissa, and padding changes what is rounded.
    assert (together * alone).sum(axis=1).min() >= (0.9999 if served.exact else 0.9995)


def test_the_other_role_would_not_pass(served: Served) -> None:
    if not served.tells_roles_apart:
        pytest.skip("a few steps of training teach no difference between the prompts")
    queries, passages = (served.embed(TEXTS, role) for role in ("query", "passage"))
    assert (queries * passages).sum(axis=1).min() < served.least_cosine - 0.001
