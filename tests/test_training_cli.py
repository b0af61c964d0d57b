"""The command line of training: help without torch, and one line for what the user can mend."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pair_files import write_pairs
from tiny_checkpoint import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
# As on a machine with the gateway only. None in sys.modules makes an import fail like a missing package.
WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "sklearn", "scipy", "matplotlib"):
    sys.modules[name] = None
from training.__main__ import cli
cli(sys.argv[1:], prog_name="python -m training")
"""


def run(*arguments: str, torch: bool = True, data: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "ME5_DATA"}
    environment |= {"ME5_DATA": data} if data is not None else {}
    start = ["-m", "training"] if torch else ["-c", WITHOUT_TORCH]
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


COMMANDS = [
    *("", "bootstrap", "prepare", "filter", "pretrain", "mine", "teach", "score", "finetune", "instruct", "synthesise"),
    *("run", "ablate", "evaluate", "compare", "report", "audit", "mteb"),
    *("export", "quantize", "export-tensorrt", "gate-optimum", "card"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_works_without_torch(command: str) -> None:
    done = run(*command.split(), "--help", torch=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: python -m training" in done.stdout


def test_a_missing_torch_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    done = run("export", str(tmp_path), "--name", "tiny", torch=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not installed; pip install -e '.[training]'" in done.stderr


@pytest.mark.parametrize("command", [["bootstrap", "c.toml", "--out", "runs/x"], ["evaluate", "model_repo/x/1"]])
def test_without_a_data_folder_the_error_says_how_to_name_one(command: list[str]) -> None:
    done = run(*command)
    assert (done.returncode, done.stderr) == (2, "error: no data folder; give --data FOLDER, or set ME5_DATA\n")


def test_the_data_folder_may_come_from_the_environment(tmp_path: Path) -> None:
    done = run("evaluate", "model_repo/x/1", data=str(tmp_path / "absent"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the data folder {tmp_path / 'absent'} does not exist")


def test_a_folder_that_is_no_checkpoint_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = run("export", str(tmp_path), "--name", "tiny", "--out", str(tmp_path / "repo"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: can't read {tmp_path / 'config.json'}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "repo").exists()


def test_a_bad_configuration_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("sead = 3\n", encoding="utf-8")
    done = run("bootstrap", str(tmp_path / "bad.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "sead" in done.stderr
    assert "Traceback" not in done.stderr


def test_prepare_and_the_three_stages_are_one_road(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs")
    backbone = write_tiny_checkpoint(tmp_path / "backbone")
    second = "epochs = 1\nhard_negatives = 2"
    stages = {"pretrain": "steps = 3", "finetune": second, "instruct": second}
    for stage, extra in stages.items():
        config = tmp_path / f"{stage}.toml"
        config.write_text(
            f'name = "toy"\nbackbone = "{backbone}"\n'
            f'[{stage}]\nbatch_pairs = 50\nprecision = "fp32"\nwarmup_steps = 1\n{extra}\n'
            f'[{stage}.sources.questions]\npath = "train/questions.jsonl"\n'
        )
        prepared, run_folder = str(tmp_path / "prepared" / stage), str(tmp_path / "run" / stage)
        done = run("prepare", str(config), "--stage", stage, "--data", str(data), "--out", prepared)
        assert (done.returncode, done.stdout) == (0, f"{prepared}\n"), done.stderr
        start = ["--start", str(tmp_path / "run" / "pretrain" / "latest")] if stage != "pretrain" else []
        done = run(stage, str(config), *start, "--pairs", prepared, "--out", run_folder)
        assert (done.returncode, done.stdout) == (0, f"{run_folder}/latest\n"), done.stderr
    done = run(
        "export", str(tmp_path / "run" / "finetune" / "latest"), "--name", "toy", "--out", str(tmp_path / "repo")
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "repo" / "toy" / "1" / "model.onnx").is_file()
    for folder in (tmp_path / "run" / "finetune" / "latest", tmp_path / "repo" / "toy" / "1"):
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "| stage | finetune |" in card
        assert re.search(r"\| questions \| \d+ \|", card)


def test_a_stage_whose_pairs_are_not_prepared_says_how(tmp_path: Path) -> None:
    config = tmp_path / "toy.toml"
    config.write_text('name = "toy"\nbackbone = "nowhere"\n')
    done = run("pretrain", str(config), "--pairs", str(tmp_path), "--out", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds no prepared sources; make them by `python -m training prepare`" in done.stderr
