"""The whole road of a model by one command, on a small world: every stage does its part, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_world import write_world

from training.config import load_config
from training.errors import BadTrainConfig, TrainingError
from training.evaluate import choose_sets, evaluate, open_model
from training.pipeline import State, fingerprint, read_state, steps_of
from training.pipeline import run as run_road
from training.protocol import PROTOCOLS
from training.result import read_result

ROOT = Path(__file__).resolve().parent.parent
STEPS = ["prepare pretrain", "pretrain", "prepare finetune", "mine", "teach", "score", "finetune", "evaluate", "export"]


def command(world: Path) -> list[str]:
    where = ["--data", str(world / "data"), "--out", str(world)]
    return [sys.executable, "-m", "training", "run", str(world / "toy.toml"), *where]


def run(world: Path) -> subprocess.CompletedProcess[str]:
    # One thread: two of a model this small do nothing but wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(world), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def smaller(world: Path) -> None:
    """The toy in fewer steps: enough to learn, little enough for every run of the tests."""
    config = world / "toy.toml"
    text = config.read_text().replace("steps = 300", "steps = 120").replace("epochs = 4", "epochs = 1")
    text = text.replace("epochs = 3", "epochs = 1").replace("hard_negatives = 7", "hard_negatives = 4")
    config.write_text(text.replace("save_every_steps = 100", "save_every_steps = 40"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that one command has taken the whole road through, stopped on the way once."""
    folder = tmp_path_factory.mktemp("road") / "world"
    write_world(folder, pairs=2500)
    smaller(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command(folder), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as first:
        checkpoint = folder / "runs" / "toy" / "pretrain" / "step_000040"
        while not checkpoint.is_dir() and first.poll() is None:
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(120) == 3
    assert set(read_state(folder / "runs" / "toy").done) == {"prepare pretrain"}
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_one_command_takes_every_stage_to_a_version_that_can_be_served(world: Path) -> None:
    assert list(read_state(world / "runs" / "toy").done) == STEPS
    version = world / "model_repo" / "toy" / "1"
    served = subprocess.run(
        [sys.executable, "-m", "service", "check"],
        cwd=ROOT,
        env={**os.environ, "ME5_MODEL": "toy", "ME5_MODEL_REPO": str(version.parent.parent), "ME5_ENGINE": "onnx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert served.returncode == 0, served.stdout + served.stderr


def test_the_stages_teach_what_the_backbone_did_not_know(world: Path) -> None:
    sets = choose_sets(["flores", "xquad"], quick=False)
    means = {}
    for name in ("backbone", "runs/toy/pretrain/latest"):
        found = evaluate(open_model(world / name).system, world / "data", sets, PROTOCOLS["paper"])
        for eval_set in sets:
            values = [each.measures for each in found.scored[eval_set.name].values()]
            measure = "accuracy" if eval_set.name == "flores" else "ndcg@10"
            means[name, eval_set.name] = sum(value[measure] for value in values) / len(values)
    # Words of different languages have nothing in common but what was learnt.
    assert means["backbone", "flores"] < 0.05
    assert means["runs/toy/pretrain/latest", "flores"] > 0.5
    result = read_result(world / "runs" / "toy" / "evaluation.json").sets["xquad"].values
    finetuned = sum(result.values()) / len(result)
    # What stage 2 adds takes a longer run, and a teacher that has learnt more: that is the ablation's to say.
    assert min(finetuned, means["runs/toy/pretrain/latest", "xquad"]) > means["backbone", "xquad"] + 0.1


def test_what_is_done_is_not_done_again(world: Path) -> None:
    done = run(world)
    assert done.returncode == 0
    assert done.stdout.count("done before") == len(STEPS)
    assert [path.name for path in (world / "model_repo" / "toy").iterdir() if path.is_dir()] == ["1"]


def test_a_changed_setting_touches_its_step_and_what_stands_on_it(world: Path) -> None:
    config = load_config(world / "toy.toml")
    steps = steps_of(config, world / "toy.toml", world / "data", world)
    changed = config.model_copy(update={"finetune": config.finetune.model_copy(update={"epochs": 5})})
    before, after, touched = "", "", []
    for step in steps:
        before, after = fingerprint(step, config, before), fingerprint(step, changed, after)
        if before != after:
            touched.append(step.name)
    assert touched == ["finetune", "evaluate", "export"]


def test_changed_settings_set_a_training_aside_and_do_again_what_stands_on_it(world: Path) -> None:
    config = world / "toy.toml"
    before = (world / "runs" / "toy" / "finetune" / "latest" / "model.safetensors").read_bytes()
    config.write_text(config.read_text().replace("hard_negatives = 4", "hard_negatives = 2"))
    done = run(world)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done before") == len(STEPS) - 3
    (aside,) = (world / "runs" / "toy").glob("finetune.before-*")
    assert (aside / "latest" / "model.safetensors").read_bytes() == before
    assert (world / "runs" / "toy" / "finetune" / "latest" / "model.safetensors").read_bytes() != before
    assert (world / "model_repo" / "toy" / "2").is_dir()


def test_a_failing_step_is_named_and_what_was_done_stays(tmp_path: Path) -> None:
    write_world(tmp_path / "world", pairs=100)
    missing = tmp_path / "world" / "data" / "train" / "questions.jsonl.gz"
    missing.unlink()
    done = run(tmp_path / "world")
    assert done.returncode == 2
    assert "no file in" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: prepare pretrain failed, see above")
    assert read_state(tmp_path / "world" / "runs" / "toy").done == {}


def test_a_step_that_is_done_again_takes_its_followers_back(tmp_path: Path) -> None:
    write_world(tmp_path / "world", pairs=100)
    config = load_config(tmp_path / "world" / "toy.toml")
    steps = steps_of(config, tmp_path / "world" / "toy.toml", tmp_path / "nowhere", tmp_path)
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    State({}, dict.fromkeys(STEPS, "old")).save(folder)
    with pytest.raises(TrainingError, match="prepare pretrain failed"):
        run_road(steps, config, folder, say=lambda _: None)
    assert read_state(folder).done == {}


def test_a_road_begins_with_stage_1(tmp_path: Path) -> None:
    config = load_config(ROOT / "training" / "configs" / "me5_small.toml")
    without = config.model_copy(update={"pretrain": config.pretrain.model_copy(update={"sources": {}})})
    with pytest.raises(BadTrainConfig, match="begins with stage 1"):
        steps_of(without, tmp_path / "c.toml", tmp_path, tmp_path)


def test_a_model_of_one_stage_has_a_road_of_that_stage(tmp_path: Path) -> None:
    config = load_config(ROOT / "training" / "configs" / "me5_small.toml")
    alone = config.model_copy(update={"finetune": config.finetune.model_copy(update={"sources": {}})})
    steps = steps_of(alone, tmp_path / "c.toml", tmp_path, tmp_path)
    assert [step.name for step in steps] == ["prepare pretrain", "pretrain", "evaluate", "export"]
    assert steps[1].command(8)[2:5] == ["torch.distributed.run", "--standalone", "--nproc-per-node"]
    assert steps[0].command(8)[2:4] == ["training", "prepare"]


def test_large_instruct_goes_from_stage_1_to_instructions(tmp_path: Path) -> None:
    config = load_config(ROOT / "training" / "configs" / "me5_large_instruct.toml")
    names = [step.name for step in steps_of(config, tmp_path / "c.toml", tmp_path, tmp_path)]
    assert names == ["prepare pretrain", "pretrain", "prepare instruct", *STEPS[3:6], "instruct", *STEPS[7:]]
