"""What each part of the recipe is worth: the same model trained without it and with it, with several seeds.

    python -m training ablate CONFIG --data DIR

Every arm is an ordinary run of an ordinary stage, so it can be stopped, gone on with, and looked at. Hard negatives are
mined, and the teacher is trained, once, from the first seed's stage 1: what is compared is what is done with them.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.recipe.spec import file_sha256
from service.recipe.tokens import load_tokenizer
from training.checkpoint import write_json
from training.config import ModelConfig, Stage
from training.cross_encoder import identity_of, open_cross_encoder
from training.errors import SettingsChanged
from training.eval_shapes import EvalSet
from training.evaluate import choose_sets, evaluate, open_model
from training.loop import stop_on_signal
from training.mine import mine
from training.pair_store import open_stores
from training.prepare import prepare
from training.processes import join_processes
from training.protocol import PROTOCOLS
from training.result import Result, read_result, write_result
from training.score import score_store
from training.score_cache import open_cache
from training.stages import train_stage
from training.teach import train_teacher


@dataclass(frozen=True)
class Arm:
    """One way to train. start: the arm whose model it begins with.   pairs: the folder of its prepared sources."""

    name: str
    title: str
    stage: Stage
    pairs: str
    start: str = ""
    one_source_a_batch: bool = True
    hard_negatives: bool = True

    def settings(self, config: ModelConfig, seed: int) -> ModelConfig:
        """The configuration with this arm's switches."""
        stage = config.stage(self.stage)
        mixture = stage.mixture.model_copy(update={"one_source_a_batch": self.one_source_a_batch})
        changes: dict[str, object] = {"mixture": mixture}
        if not self.hard_negatives:
            changes["hard_negatives"] = 0
        return config.model_copy(update={"seed": seed, self.stage: stage.model_copy(update=changes)})


ARMS = (
    Arm("mixed", "stage 1, sources mixed in a batch", "pretrain", "pretrain", one_source_a_batch=False),
    Arm("single", "stage 1", "pretrain", "pretrain"),
    Arm("pairs", "+ stage 2, in-batch negatives", "finetune", "mined", start="single", hard_negatives=False),
    Arm("negatives", "+ stage 2, hard negatives", "finetune", "mined", start="single"),
    Arm("teacher", "+ stage 2, hard negatives, distillation", "finetune", "scored", start="single"),
)
MADE_FROM = "made_from.json"
# What a part does: from which arm to which.
EFFECTS = (
    ("one source a batch", "mixed", "single"),
    ("labelled pairs", "single", "pairs"),
    ("hard negatives", "pairs", "negatives"),
    ("distillation", "negatives", "teacher"),
)


def ablate(
    config: ModelConfig,
    *,
    data: Path,
    out: Path,
    seeds: Sequence[int],
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, list[Result]] | None:
    """Train and measure every arm with every seed; arm → its results. None where a stop was asked for.

    What `out` holds already is taken as it is. Raises SettingsChanged or BadTrainingData where it was made otherwise.
    """
    stop = should_stop or stop_on_signal()
    sets = choose_sets(config.evaluate.sets, quick=False)
    for name, stage in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        prepare(stage.sources, stage.filter, data=data, out=out / "pairs" / name)
    for arm in ARMS:
        if arm.stage == "finetune" and not find_negatives(config, out, seeds[0], stop):
            return None
        for seed in seeds:
            done = train_stage(
                arm.settings(config, seed),
                arm.stage,
                pairs=out / "pairs" / arm.pairs,
                out=run_of(out, arm.name, seed),
                start=run_of(out, arm.start, seed) / "latest" if arm.start else None,
                resume=True,
                should_stop=stop,
            )
            if not done:
                return None
    results: dict[str, list[Result]] = {arm.name: [] for arm in ARMS}
    for arm in ARMS:
        for seed in seeds:
            results[arm.name].append(measured(out, arm, seed, data, sets, config))
            if stop():
                return None
    return results


def run_of(out: Path, arm: str, seed: int) -> Path:
    """The folder of an arm's run."""
    return out / f"seed_{seed}" / arm


def find_negatives(config: ModelConfig, out: Path, seed: int, stop: Callable[[], bool]) -> bool:
    """Mine, train the teacher, and let it score, unless that is done; False where a stop was asked for."""
    pairs, searcher = out / "pairs", run_of(out, "single", seed) / "latest"
    weights = file_sha256(searcher / "model.safetensors")
    made_from: dict[str, object] = {"mine": config.mine.model_dump(mode="json"), "searcher": weights}
    if not (pairs / "mined").is_dir():
        opened, tokenizer = open_model(searcher), load_tokenizer(searcher / "tokenizer.json")
        for store in open_stores(pairs / "finetune", config.finetune.sources):
            mine(store, opened.embed, tokenizer, opened.files, config.mine, pairs / ".mined")
            if stop():
                return False
        write_json(pairs / ".mined" / MADE_FROM, made_from)
        (pairs / ".mined").rename(pairs / "mined")
    if json.loads((pairs / "mined" / MADE_FROM).read_text(encoding="utf-8")) != made_from:
        raise SettingsChanged(f"{pairs / 'mined'} was mined otherwise; begin anew, with another --out")
    start = Path(config.teach.start) if config.teach.start else searcher
    taught = partial(train_teacher, config, pairs=pairs / "mined", out=out / "teacher", start=start, resume=True)
    if not taught(should_stop=stop):
        return False
    if not (pairs / "scored").is_dir():
        shutil.rmtree(pairs / ".scored", ignore_errors=True)
        shutil.copytree(pairs / "mined", pairs / ".scored")
        name = str(out / "teacher" / "latest")
        teacher = open_cross_encoder(name, join_processes().device, config.teach.max_tokens)
        with open_cache(out / "scores.sqlite3", identity_of(name, config.teach)) as cache:
            for store in open_stores(pairs / ".scored", config.finetune.sources):
                score_store(store, teacher, cache, config.teach)
                if stop():
                    return False
        (pairs / ".scored").rename(pairs / "scored")
    return True


def measured(out: Path, arm: Arm, seed: int, data: Path, sets: Sequence[EvalSet], config: ModelConfig) -> Result:
    """An arm's result with one seed, measured anew unless it is of these weights, sets and protocol."""
    path, model = run_of(out, arm.name, seed) / "result.json", run_of(out, arm.name, seed) / "latest"
    if path.is_file():
        before = read_result(path)
        same = before.system.files["model.safetensors"] == file_sha256(model / "model.safetensors")
        asked = (config.evaluate.protocol, [each.name for each in sets])
        if same and (before.protocol["name"], list(before.sets)) == asked:
            return before
    system = open_model(model, progress=True).system
    write_result(path, evaluate(system, data, sets, PROTOCOLS[config.evaluate.protocol]))
    return read_result(path)
