"""A run's folder: what it was made from, its checkpoints, its curve. One run a folder, and it can be gone on with.

run.json            settings and data; a resumed run must have the same
step_000500/        a checkpoint: model, tokenizer, manifest, and for the newest the optimiser's moments
latest              link to the newest
curve.jsonl         a line each log_every_steps
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from training.checkpoint import load_state, save_checkpoint, write_json
from training.errors import RunExists, SettingsChanged, TrainingError

RUN_FILE, CURVE_FILE = "run.json", "curve.jsonl"
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


class RunFolder:
    """Opened by the first process for writing; the others only read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, identity: Mapping[str, object]) -> None:
        """Make the folder, unless it is there."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / RUN_FILE).is_file():
            write_json(self.path / RUN_FILE, dict(identity))

    def check(self, identity: Mapping[str, object], *, resume: bool) -> None:
        """Raises RunExists where another run's files lie, SettingsChanged where this run was begun otherwise."""
        path = self.path / RUN_FILE
        if self.path.exists() and any(self.path.iterdir()) and not resume:
            raise RunExists(f"{self.path} is not empty; continue that run with --resume, or choose another --out")
        if path.is_file():
            changed = _differences(json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(identity)))
            if changed:
                raise SettingsChanged(
                    f"{', '.join(changed)} differ from those in {path}; start a new run, with another --out"
                )

    def load(self) -> tuple[Path, dict[str, object]] | None:
        """The newest checkpoint and its state, or None."""
        return load_state(self.path)

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        state: Mapping[str, object],
        identity: Mapping[str, object],
        extra: Mapping[str, object],
        write_layout: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a checkpoint whole or not at all. Raises TrainingError where the disk has no room."""
        manifest = {**identity, **extra, "step": step, "made_with": surroundings()}
        try:
            save_checkpoint(self.path, step, model, tokenizer, manifest, state, write_layout)
        except (OSError, RuntimeError) as error:
            # PyTorch reports a full disk as a RuntimeError of its own.
            raise TrainingError(
                f"the checkpoint of step {step} can't be written: {error}; the one before is whole. "
                f"Make room at {self.path} and go on with --resume"
            ) from error

    def cut_curve(self, step: int) -> None:
        """Drop what was logged behind the checkpoint that a resumed run goes on from."""
        path = self.path / CURVE_FILE
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            unfinished = path.with_name(f".{path.name}.unfinished")
            unfinished.write_text("".join(kept), encoding="utf-8")
            os.replace(unfinished, path)

    def log(self, row: Mapping[str, float]) -> None:
        """Add a line to the curve."""
        with (self.path / CURVE_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


def surroundings() -> dict[str, object]:
    """Libraries, the code's commit, and the hardware."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "commit": _commit(),
        "hardware": {"machine": platform.machine(), "gpus": gpus, "threads": torch.get_num_threads()},
    }


def _commit() -> str | None:
    """Of the code that runs, with "+" where it was edited; None outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _differences(before: object, now: object, where: str = "") -> list[str]:
    """The keys in which two settings differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            name
            for key in keys
            for name in _differences(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if before == now else [where]
