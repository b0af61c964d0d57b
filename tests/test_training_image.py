"""The training image, built from its Dockerfile as it is: three steps of a tiny model and its export, by nobody.

It takes gigabytes and minutes, so it is asked for: `make test-training-image`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from containers import PYTHON_IMAGE, ROOT, build, containers_missing, image_size, make_python_base, run
from pair_files import write_pairs
from tiny_checkpoint import write_tiny_checkpoint

ASKED = "TRAINING_IMAGE" in os.environ
pytestmark = [
    pytest.mark.skipif(containers_missing() is not None, reason=str(containers_missing())),
    pytest.mark.skipif(not ASKED, reason="builds an image with torch; `make test-training-image` runs it"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

IMAGE = "localhost/me5-training:latest"
CONFIG = """\
name = "toy"
backbone = "/job/backbone"
[pretrain]
batch_pairs = 50
precision = "fp32"
warmup_steps = 1
steps = 3
[pretrain.sources.questions]
path = "train/questions.jsonl"
"""


def train(folder: Path, *arguments: str) -> str:
    """`python -m training` in the image, as compose would harden it, with one folder to write to."""
    hardened = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges")
    return run("podman", "run", "--rm", "--network", "none", *hardened, "-v", f"{folder}:/job", IMAGE, *arguments)


def test_the_image_prepares_trains_and_exports_without_rights_or_network(tmp_path: Path) -> None:
    make_python_base()
    index = os.environ.get("TORCH_INDEX", "")
    build(ROOT / "docker" / "training.Dockerfile", [IMAGE], **({"TORCH_INDEX": index} if index else {}))
    print(f"\ntraining image: {(image_size(IMAGE) - image_size(PYTHON_IMAGE)) / 1e6:.0f} MB on top of its base")
    write_pairs(tmp_path / "pairs")
    write_tiny_checkpoint(tmp_path / "backbone")
    (tmp_path / "toy.toml").write_text(CONFIG, encoding="utf-8")
    # pytest's folders are the tester's alone; in the image nobody is the tester.
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
    config = "/job/toy.toml"
    train(tmp_path, "prepare", config, "--stage", "pretrain", "--data", "/job/pairs", "--out", "/job/prepared")
    train(tmp_path, "pretrain", config, "--pairs", "/job/prepared", "--out", "/job/run")
    train(tmp_path, "export", "/job/run/latest", "--name", "toy", "--out", "/job/repo")
    version = tmp_path / "repo" / "toy" / "1"
    assert (version / "model.onnx").stat().st_uid == 10001
    assert (version / "golden.json").is_file()
