"""One model for every server: mE5-small's shape with random weights, in each server's own format.

    folder/checkpoint/        config.json, model.safetensors, tokenizer.json, onnx/: what Infinity and Sentence
                              Transformers load
    folder/model_repo/        the same weights by `service pull`, and a version with int8 graphs where that worked

What a model computes costs the same whatever its weights say. The vocabulary is that of the shipped tokenizer, not the
250,037 tokens of mE5: a smaller table to look rows up in, nothing else.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from service.model import find_version
from service.pull import pull
from service.recipe.spec import TOKENIZER_FILE

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "me5_small"
PUBLISHED = "intfloat/multilingual-e5-small"
TOKENIZER = find_version("me5_nano", ROOT / "model_repo") / TOKENIZER_FILE
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 512,
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


def make_model(folder: Path) -> Path:
    """The folder, written if it is not there yet (about a minute)."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        model = Path(unfinished) / "model"
        write_checkpoint(model / "checkpoint")
        pull(str(model / "checkpoint"), model / "model_repo", published=PUBLISHED)
        model.rename(folder)
    return folder


def write_checkpoint(folder: Path) -> None:
    """The Hugging Face layout, with what older versions of transformers and optimum look for."""
    from published_folder import write_published_folder

    write_published_folder(folder, TOKENIZER, layers=12)
    for place in (folder, folder / "onnx"):
        shutil.copyfile(TOKENIZER, place / "tokenizer.json")
        (place / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG), encoding="utf-8")
    shutil.copyfile(folder / "config.json", folder / "onnx" / "config.json")


def quantize(folder: Path, data: Path | None) -> str | None:
    """Add a version with int8 graphs, if there is none yet. Returns why there is none, or None."""
    version = folder / "model_repo" / NAME / "1"
    if not (version.parent / "2").exists():
        command = [sys.executable, "-m", "training", "quantize", str(version)]
        if data is not None and data.is_dir():
            command += ["--data", str(data)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            lines = [line for line in (run.stderr or run.stdout).splitlines() if line.strip(" ╰─╯│╭╮")]
            return lines[-1].strip(" │") if lines else f"exit code {run.returncode}"
    return None
