"""Both stages on toy pairs and a tiny backbone: they learn, resume to the same bytes, and end well where they must."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_files import THINGS, write_pairs
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_checkpoint import write_tiny_checkpoint

from training.backbone import load_backbone
from training.checkpoint import load_state
from training.config import FilterConfig, FinetuneConfig, MixtureConfig, ModelConfig, PretrainConfig, SourceConfig
from training.errors import (
    BadTrainConfig,
    BadTrainingData,
    RunExists,
    SettingsChanged,
    StartingModelMissing,
    TrainingDiverged,
    TrainingError,
)
from training.pair_store import PairRow, open_stores, text_key
from training.prepare import prepare
from training.processes import Processes
from training.schedule import rate_at
from training.stage_batches import StageBatches, choose_negatives
from training.stages import train_stage

STEPS = 24
# What both stages of a toy have.
TOY = {"temperature": 0.05, "max_tokens": 48, "chunk_tokens": 256, "precision": "fp32", "warmup_steps": 4}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("backbone") / "tiny")
    # Dropout on, as the published backbones have it: a resumed run must drop what it would have dropped.
    assert json.loads((folder / "config.json").read_text())["hidden_dropout_prob"] > 0
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_pairs(tmp_path_factory.mktemp("data"))
    sources = {
        "translation": SourceConfig(path="train/translation.jsonl.gz", positive_role="query"),
        "questions": SourceConfig(path="train/questions.jsonl"),
    }
    prepare(sources, FilterConfig(), data=data, out=data / "prepared")
    return data / "prepared"


@pytest.fixture(scope="module")
def config(backbone: Path) -> ModelConfig:
    return ModelConfig(
        name="toy",
        backbone=str(backbone),
        pretrain=PretrainConfig(
            batch_pairs=32,
            steps=STEPS,
            learning_rate=2e-3,
            mixture=MixtureConfig(source_exponent=0.5),
            save_every_steps=8,
            log_every_steps=4,
            **TOY,
        ),
    )


def changed(config: ModelConfig, **values: object) -> ModelConfig:
    return config.model_copy(update={"pretrain": config.pretrain.model_copy(update=values)})


def after(steps: int) -> Callable[[], bool]:
    """Asked behind every step: stop behind that many."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps


def weights_hash(run: Path) -> str:
    return hashlib.sha256((run / "latest" / "model.safetensors").read_bytes()).hexdigest()


def curve(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(config: ModelConfig, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    run = tmp_path_factory.mktemp("run") / "whole"
    assert train_stage(config, "pretrain", pairs=pairs, out=run, should_stop=lambda: False)
    return run


def test_the_loss_falls_and_the_model_finds_what_belongs_together(whole: Path, backbone: Path, pairs: Path) -> None:
    losses = [row["loss"] for row in curve(whole)]
    assert losses[-1] < 0.7 * losses[0]
    rows = open_stores(pairs)[1].rows(np.arange(100))

    def hits(folder: Path) -> float:
        model = SentenceTransformer(str(folder), device="cpu")
        queries = model.encode([f"query: {row.query}" for row in rows])
        passages = model.encode([f"query: {row.positive}" for row in rows])
        return float(((queries @ passages.T).argmax(axis=1) == np.arange(100)).mean())

    assert hits(whole / "latest") > hits(backbone) + 0.1


def test_the_manifest_says_what_the_checkpoint_was_made_from(whole: Path, pairs: Path) -> None:
    manifest = json.loads((whole / "latest" / "run.json").read_text())
    assert manifest["step"] == STEPS
    assert manifest["pairs_seen"] == STEPS * 32
    assert manifest["settings"]["seed"] == 42
    assert manifest["settings"]["pretrain"]["temperature"] == 0.05
    assert set(manifest["data"]) == {"translation", "questions"}
    about = json.loads((pairs / "questions" / "source.json").read_text())
    assert manifest["data"]["questions"] == about["pairs_sha256"]
    assert manifest["made_with"]["versions"]["torch"] == torch.__version__
    assert manifest["weights_sha256"] == weights_hash(whole)


def test_position_vectors_stay_where_they_were(whole: Path, backbone: Path) -> None:
    name = "embeddings.position_embeddings.weight"
    before, now = (load_file(folder / "model.safetensors") for folder in (backbone, whole / "latest"))
    assert torch.equal(before[name], now[name])
    assert not torch.equal(before["embeddings.word_embeddings.weight"], now["embeddings.word_embeddings.weight"])


def test_a_run_stopped_ten_times_ends_in_the_same_bytes(
    config: ModelConfig, pairs: Path, whole: Path, tmp_path: Path
) -> None:
    draw = random.Random(5)
    run, stops = tmp_path / "run", 0
    while not train_stage(
        config,
        "pretrain",
        pairs=pairs,
        out=run,
        resume=True,
        should_stop=after(draw.randint(1, 2)) if stops < 10 else lambda: False,
    ):
        stops += 1
    assert stops == 10
    assert weights_hash(run) == weights_hash(whole)
    assert [row["step"] for row in curve(run)] == sorted({row["step"] for row in curve(run)})


KILLED = """
import os, sys
from pathlib import Path
import torch
from training.config import ModelConfig
from training.stage_batches import choose_negatives
from training.stages import train_stage

torch.set_num_threads(1)
stop_at = int(sys.argv[4])
asked = iter(range(1, 10**6))

def die() -> bool:
    # Between two steps of one run and in the middle of nothing's being saved: like the kernel's SIGKILL.
    if next(asked) == stop_at:
        os.kill(os.getpid(), 9)
    return False

config = ModelConfig.model_validate_json(Path(sys.argv[1]).read_text())
train_stage(config, "pretrain", pairs=Path(sys.argv[2]), out=Path(sys.argv[3]), resume=True, should_stop=die)
"""


def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_bytes(
    config: ModelConfig, pairs: Path, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config.model_dump_json())
    run = tmp_path / "run"
    # Killed behind step 11, so that steps 9 to 11 are done again, and while nothing was saved yet.
    for stop_at, code in ((3, -9), (11, -9), (0, 0)):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(pairs), str(run), str(stop_at)],
            check=False,
            timeout=120,
        )
        assert done.returncode == code
    assert weights_hash(run) == weights_hash(whole)
    assert curve(run) == curve(whole)


def in_two_processes(script: str, *arguments: str) -> list[int]:
    """Run it as torchrun would, twice side by side; the exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen([sys.executable, "-c", script, *arguments], env=os.environ | group | {"RANK": str(rank)})
        for rank in range(2)
    ]
    return [process.wait(120) for process in started]


def test_two_processes_train_the_model_of_one(config: ModelConfig, pairs: Path, backbone: Path, tmp_path: Path) -> None:
    # Without dropout, which falls differently in each process.
    calm = tmp_path / "calm"
    calm.mkdir()
    for file in backbone.iterdir():
        if file.is_file():
            (calm / file.name).write_bytes(file.read_bytes())
    shape = json.loads((calm / "config.json").read_text())
    (calm / "config.json").write_text(json.dumps(shape | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}))
    still = changed(config, steps=6).model_copy(update={"backbone": str(calm)})
    assert train_stage(still, "pretrain", pairs=pairs, out=tmp_path / "one", should_stop=lambda: False)
    (tmp_path / "config.json").write_text(still.model_dump_json())
    two = str(tmp_path / "two")
    assert in_two_processes(KILLED, str(tmp_path / "config.json"), str(pairs), two, "0") == [0, 0]
    one, both = (load_file(tmp_path / run / "latest" / "model.safetensors") for run in ("one", "two"))
    for name, weight in one.items():
        # What a key's offset adds is the same for every token: its gradient is zero but for rounding, which AdamW
        # makes a whole step of.
        if name.endswith("key.bias"):
            continue
        assert (weight - both[name]).abs().mean() < 1e-5, name


def test_settings_that_changed_and_a_folder_in_use_are_refused(
    config: ModelConfig, pairs: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunExists, match="--resume"):
        train_stage(config, "pretrain", pairs=pairs, out=whole)
    with pytest.raises(SettingsChanged, match=r"settings\.pretrain\.temperature differ from those in"):
        train_stage(changed(config, temperature=0.01), "pretrain", pairs=pairs, out=whole, resume=True)
    with pytest.raises(BadTrainingData, match="holds no prepared sources"):
        train_stage(config, "pretrain", pairs=tmp_path, out=tmp_path / "run")


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(
    config: ModelConfig, pairs: Path, tmp_path: Path
) -> None:
    wild = changed(config, learning_rate=1e12, gradient_norm_max=1e12, warmup_steps=0, save_every_steps=1)
    with pytest.raises(TrainingDiverged, match=r"step \d+: the loss is nan.*learning_rate"):
        train_stage(wild, "pretrain", pairs=pairs, out=tmp_path / "run", should_stop=lambda: False)
    weights = load_file(tmp_path / "run" / "latest" / "model.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(
    config: ModelConfig, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert not train_stage(config, "pretrain", pairs=pairs, out=run, should_stop=after(8))
    before = weights_hash(run)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint.torch.save", full)
    with pytest.raises(TrainingError, match=r"No space left on device; the one before is whole"):
        train_stage(config, "pretrain", pairs=pairs, out=run, resume=True, should_stop=lambda: False)
    monkeypatch.undo()
    assert weights_hash(run) == before
    assert train_stage(config, "pretrain", pairs=pairs, out=run, resume=True, should_stop=lambda: False)


def test_a_batch_that_can_not_be_shared_is_refused(
    config: ModelConfig, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.stages.join_processes", lambda: Three())
    with pytest.raises(BadTrainConfig, match="batch_pairs 32 can't be shared by 3 processes"):
        train_stage(config, "pretrain", pairs=pairs, out=tmp_path / "run")


class Three:
    """What of three processes the check looks at."""

    count = 3


def scored_questions(data: Path, rows: int = 200) -> Path:
    """Questions with three hard negatives, and a teacher who prefers them in their order."""
    folder = data / "train"
    folder.mkdir(parents=True)
    with (folder / "scored.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(rows):
            thing = THINGS[number % len(THINGS)]
            row = {
                "query": f"where is {thing} number {number}?",
                "positive": f"the {thing} with number {number} is kept behind the old mill",
                "negative": [f"{word} {thing} number {number + 1} burnt down" for word in ("nearly", "half", "wholly")],
                "scores": [6.0, 2.0, 0.0, -2.0],
                "lang": "en",
            }
            stream.write(json.dumps(row) + "\n")
    prepare({"scored": SourceConfig(path="train/scored.jsonl")}, FilterConfig(), data=data, out=data / "prepared")
    return data / "prepared"


def test_the_second_stage_goes_on_from_the_first_and_learns_the_teacher_s_ranking(
    config: ModelConfig, whole: Path, tmp_path: Path
) -> None:
    pairs = scored_questions(tmp_path / "data")
    second = FinetuneConfig(
        batch_pairs=20,
        epochs=6,
        learning_rate=2e-3,
        hard_negatives=2,
        **TOY,
    )
    taught = config.model_copy(update={"finetune": second})
    start, run = whole / "latest", tmp_path / "run"
    assert train_stage(taught, "finetune", pairs=pairs, start=start, out=run, should_stop=lambda: False)
    assert (run / "latest").resolve().name == f"step_{6 * 200 // 20:06d}"
    rows = open_stores(pairs)[0].rows(np.arange(200))

    def agreement(folder: Path) -> float:
        model = SentenceTransformer(str(folder), device="cpu")
        queries = model.encode([f"query: {row.query}" for row in rows])
        cosines = []
        for texts in zip(*([row.positive, *row.negatives] for row in rows), strict=True):
            cosines.append((queries * model.encode([f"passage: {text}" for text in texts])).sum(axis=1))
        return float((np.diff(np.array(cosines), axis=0) < 0).mean())

    before, now = agreement(start), agreement(run / "latest")
    print(f"\nagrees with the teacher: {before:.3f} before, {now:.3f} now")
    assert now > 0.75 > before + 0.2
    again = tmp_path / "again"
    assert not train_stage(taught, "finetune", pairs=pairs, start=start, out=again, should_stop=after(7))
    assert train_stage(taught, "finetune", pairs=pairs, start=start, out=again, resume=True, should_stop=lambda: False)
    assert weights_hash(again) == weights_hash(run)


def test_batches_of_all_sources_are_trained_on_with_each_row_s_own_prompts_and_resumed_to_the_same_bytes(
    config: ModelConfig, pairs: Path, tmp_path: Path
) -> None:
    second = FinetuneConfig(
        batch_pairs=64, epochs=1, hard_negatives=2, mixture=MixtureConfig(one_source_a_batch=False), **TOY
    )
    mixed, stores = config.model_copy(update={"finetune": second}), open_stores(pairs)
    weights = {store.about.name: 1.0 for store in stores}
    alone = Processes(0, 1, torch.device("cpu"))
    opened = load_backbone(config.backbone, "", alone.device, freeze_positions=True)
    batches = StageBatches(second, stores, weights, opened, steps=9, seed=42, processes=alone)
    batch, halves = batches.of(3), []
    for rank in range(2):
        half = Processes(rank, 2, alone.device)
        halves.append(StageBatches(second, stores, weights, opened, steps=9, seed=42, processes=half).of(3))
    assert batch.source == "mixed"
    # Translations have no negatives, so no row of the batch has.
    assert batch.collated.keys.negatives.shape == (64, 0)
    assert torch.equal(batch.collated.keys.queries, torch.cat([half.collated.keys.queries for half in halves]))
    ids = [
        row[mask.astype(bool)]
        for chunk in batch.collated.chunks
        for row, mask in zip(chunk.ids, chunk.mask, strict=True)
    ]
    opening = opened.tokenizer.encode("passage:").ids[:4]
    passages = sum(row[:4].tolist() == opening for row in ids)
    answers = {text_key(row.positive) for row in stores[0].rows(np.arange(300))}
    assert passages == sum(int(key) in answers for key in batch.collated.keys.positives) > 0
    whole, again = tmp_path / "whole", tmp_path / "again"
    start = Path(config.backbone)
    assert train_stage(mixed, "finetune", pairs=pairs, start=start, out=whole, should_stop=lambda: False)
    assert not train_stage(mixed, "finetune", pairs=pairs, start=start, out=again, should_stop=after(3))
    assert train_stage(mixed, "finetune", pairs=pairs, start=start, out=again, resume=True, should_stop=lambda: False)
    assert weights_hash(again) == weights_hash(whole)


def events_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value), as TensorBoard shows them."""
    found = EventAccumulator(str(run / "events"))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_event_files_show_the_curve_once_after_a_crash(config: ModelConfig, pairs: Path, tmp_path: Path) -> None:
    run, asked = tmp_path / "run", iter(range(1, 10**6))

    def crash() -> bool:
        # Behind step 15: steps 12 to 15 were logged, and are done again from the checkpoint of step 8.
        if next(asked) == 15:
            raise ConnectionError
        return False

    with pytest.raises(ConnectionError):
        train_stage(config, "pretrain", pairs=pairs, out=run, should_stop=crash)
    assert events_of(run)["train/loss"][-1][0] == 12
    assert train_stage(config, "pretrain", pairs=pairs, out=run, resume=True, should_stop=lambda: False)
    assert len(list((run / "events").iterdir())) == 2
    events, lines = events_of(run), curve(run)
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert events[f"train/{name}"] == [(row["step"], pytest.approx(row[name])) for row in lines]
    assert {tag for tag in events if tag.startswith("loss_by_source/")} == {
        "loss_by_source/questions",
        "loss_by_source/translation",
    }
    assert all(value > 0 for tag in ("speed/pairs_per_s", "speed/tokens_per_s") for _, value in events[tag])


STOPPED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import torch
import training.checkpoint
from training.config import ModelConfig
from training.processes import Processes
from training.stages import train_stage

torch.set_num_threads(1)
write, wait = torch.save, Processes.wait
waits = []

def interrupted(state, path):
    # The launcher's signal comes when half of a checkpoint is written, and again.
    os.kill(os.getpid(), signal.SIGTERM)
    Path(path).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGTERM)
    write(state, path)

def interrupted_wait(self):
    # The other process gets it while it waits for the first to have written; the first wait is before the steps.
    waits.append(self)
    if len(waits) == 2 and not self.is_first:
        os.kill(os.getpid(), signal.SIGTERM)
    wait(self)

training.checkpoint.torch.save = interrupted
Processes.wait = interrupted_wait
config = ModelConfig.model_validate_json(Path(sys.argv[1]).read_text())
sys.exit(0 if train_stage(config, "pretrain", pairs=Path(sys.argv[2]), out=Path(sys.argv[3])) else 3)
"""


def test_a_signal_while_a_checkpoint_is_written_lets_every_process_finish_it(
    config: ModelConfig, pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(changed(config, save_every_steps=3, steps=9).model_dump_json())
    run = tmp_path / "run"
    assert in_two_processes(STOPPED_WHILE_SAVING, str(tmp_path / "config.json"), str(pairs), str(run)) == [3, 3]
    step, state = torch_state(run)
    # Behind the step after the one that was being saved.
    assert step == state["step"] == 4
    assert json.loads((run / "step_000003" / "run.json").read_text())["step"] == 3
    assert not list(run.glob(".*unfinished"))


def torch_state(run: Path) -> tuple[int, dict[str, object]]:
    """The newest checkpoint's number, and what it resumes from."""
    found = load_state(run)
    assert found is not None
    return int(found[0].name.removeprefix("step_")), found[1]


def test_what_can_not_begin_is_named_and_leaves_no_folder(config: ModelConfig, pairs: Path, tmp_path: Path) -> None:
    short = config.model_copy(update={"finetune": FinetuneConfig(batch_pairs=20, warmup_steps=4)})
    with pytest.raises(StartingModelMissing, match="can't read the backbone .*nowhere"):
        train_stage(short, "finetune", pairs=pairs, start=tmp_path / "nowhere", out=tmp_path / "run")
    with pytest.raises(BadTrainConfig, match="warmup_steps 400 leave nothing of the 2 steps"):
        train_stage(config, "finetune", pairs=pairs, start=Path(config.backbone), out=tmp_path / "run")
    other = SourceConfig(path="train/questions.jsonl", query_role="passage")
    with pytest.raises(BadTrainingData, match=r"prepared with other settings \(query_role\); prepare it again"):
        train_stage(changed(config, sources={"questions": other}), "pretrain", pairs=pairs, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_reporting_more_often_is_no_other_run(config: ModelConfig, pairs: Path, whole: Path) -> None:
    assert train_stage(changed(config, log_every_steps=1), "pretrain", pairs=pairs, out=whole, resume=True)


def test_a_backbone_that_lacks_weights_is_refused(
    config: ModelConfig, pairs: Path, backbone: Path, tmp_path: Path
) -> None:
    shutil.copytree(backbone, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    broken = config.model_copy(update={"backbone": str(tmp_path / "broken")})
    with pytest.raises(StartingModelMissing, match=r"lacks 1 of the model's tensors: encoder\.layer\.1\.output\.dense"):
        train_stage(broken, "pretrain", pairs=pairs, out=tmp_path / "run")


def test_every_visit_of_a_pair_has_other_negatives_with_their_own_scores() -> None:
    row = PairRow("q", "p", [f"n{number}" for number in range(40)], [9.0, *map(float, range(40))])
    visits = [choose_negatives(row, 7, key) for key in range(50)]
    assert len({tuple(visit.negatives) for visit in visits}) == 50
    assert {text for visit in visits for text in visit.negatives} == set(row.negatives)
    for visit in visits:
        assert len(set(visit.negatives)) == 7
        assert visit.scores == [9.0, *(float(text[1:]) for text in visit.negatives)]
    assert choose_negatives(row, 0, 1) == PairRow("q", "p")


def test_the_rate_rises_and_falls() -> None:
    assert [rate_at(step, 10, 2) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]
    level = [rate_at(step, 100, 10, "warmup_stable_decay", 0.2) for step in (0, 9, 50, 80, 90, 99)]
    assert level == [0.1, 1.0, 1.0, 1.0, 0.5, 0.05]
