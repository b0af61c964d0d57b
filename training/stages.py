"""The two contrastive stages: weak pairs in batches of tens of thousands, then labelled ones with hard negatives."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from service.recipe.prompts import E5_PROMPTS
from training.backbone import load_backbone
from training.bootstrap import stop_on_signal
from training.collate import Collated, Collator
from training.config import FinetuneConfig, ModelConfig, PretrainConfig, Stage, StageConfig
from training.errors import BadTrainConfig
from training.objective import Objective
from training.pair_store import PairRow, hashes_of, open_stores
from training.permutation import key_of, permuted
from training.processes import Processes, join_processes
from training.run_folder import RunFolder
from training.sampling import Sampler, source_odds
from training.step import Stepper, StepReport

logger = logging.getLogger(__name__)

# Batches that are tokenised ahead of the one that is trained on.
AHEAD = 2


def train_stage(
    config: ModelConfig,
    name: Stage,
    *,
    pairs: Path,
    out: Path,
    start: Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Train on prepared pairs; whether it came to the end. The model is `out/latest`.

    start: the checkpoint to begin with; the backbone by default.   resume: go on from the newest checkpoint, to the
    weights that an uninterrupted run would have had.   should_stop: asked behind every step; SIGTERM and Ctrl-C by
    default.
    """
    stage = config.stage(name)
    processes = join_processes()
    stop = should_stop or stop_on_signal()
    if stage.batch_pairs % processes.count:
        raise BadTrainConfig(f"batch_pairs {stage.batch_pairs} can't be shared by {processes.count} processes")
    stores = open_stores(pairs)
    others: set[str] = {"pretrain", "finetune"} - {name}
    identity: dict[str, object] = {
        "stage": name,
        "settings": config.model_dump(mode="json", exclude=others),
        "start": str(start or config.backbone),
        "data": hashes_of(stores),
    }
    folder = RunFolder(out)
    folder.check(identity, resume=resume)
    processes.wait()
    if processes.is_first:
        folder.begin(identity, resume=True)
    found = folder.load()
    source, tokenizer = (str(start), "") if start else (config.backbone, config.tokenizer)
    if found:
        source, tokenizer = str(found[0]), ""
    backbone = load_backbone(source, tokenizer, processes.device, freeze_positions=stage.freeze_positions)
    steps = steps_of(stage, sum(store.shape.rows for store in stores))
    stepper = Stepper(backbone, stage, steps, config.seed, processes)
    first = 0
    if found:
        stepper.optimizer.load_state_dict(cast(dict[str, object], found[1]["optimizer"]))
        first = cast(int, found[1]["step"])
    shapes = [store.shape for store in stores]
    weights = {name: entry.weight for name, entry in stage.sources.items()}
    odds = source_odds(shapes, exponent=stage.mixture.source_exponent, cap=stage.mixture.source_cap, weights=weights)
    exponent = stage.mixture.language_exponent
    sampler = Sampler(shapes, odds, batch_pairs=stage.batch_pairs, language_exponent=exponent, seed=config.seed)
    collator = Collator(
        backbone.tokenizer,
        E5_PROMPTS,
        pad_id=backbone.pad_id,
        max_tokens=stage.max_tokens,
        chunk_tokens=stage.chunk_tokens,
    )
    mine = processes.share(stage.batch_pairs)

    def batch_of(step: int) -> Batch:
        drawn = sampler.batch(step)
        store = stores[drawn.source]
        count = min(stage.hard_negatives, store.about.negatives) if isinstance(stage, FinetuneConfig) else 0
        rows = store.rows(drawn.rows[mine.start : mine.stop])
        chosen = [choose_negatives(row, count, key) for row, key in zip(rows, keys_of(step, mine), strict=True)]
        collated = collator.collate(chosen, (store.about.query_role, store.about.positive_role), count)
        if not (count and store.about.scored):
            return Batch(collated, None)
        return Batch(collated, torch.tensor([row.scores for row in chosen], device=processes.device))

    def keys_of(step: int, rows: range) -> list[int]:
        return [int(key) for key in key_of(config.seed, step, np.arange(rows.start, rows.stop))]

    def save(done: int) -> None:
        if processes.is_first:
            state = {"step": done, "optimizer": stepper.optimizer.state_dict()}
            extra = {"pairs_seen": done * stage.batch_pairs, "steps": steps, "processes": processes.count}
            folder.save(done, backbone.model, backbone.tokenizer, state, identity, extra)
        processes.wait()

    if processes.is_first:
        folder.cut_curve(first)
    due = range(first, steps)
    finished = _run(due, ahead(batch_of, due), stepper, stage, processes, folder, save, stop)
    processes.leave()
    return finished


@dataclass(frozen=True)
class Batch:
    """teacher: [b, 1 + K] scores of this process's rows, or None where nobody was asked."""

    collated: Collated
    teacher: torch.Tensor | None


def steps_of(stage: PretrainConfig | FinetuneConfig, rows: int) -> int:
    """How many steps a stage has: as stated, or as many as its epochs take."""
    if isinstance(stage, PretrainConfig):
        return stage.steps
    return max(1, stage.epochs * rows // stage.batch_pairs)


def objective_of(stage: StageConfig, *, taught: bool) -> Objective:
    """InfoNCE alone, or a little of it beside the teacher's ranking."""
    if taught and isinstance(stage, FinetuneConfig):
        return Objective(stage.temperature, stage.direction, stage.alpha, stage.teacher_temperature)
    return Objective(stage.temperature, stage.direction)


def choose_negatives(row: PairRow, count: int, key: int) -> PairRow:
    """`count` of a row's negatives with their scores, others at every visit."""
    if count == 0:
        return PairRow(row.query, row.positive)
    total = len(row.negatives)
    chosen = permuted(np.arange(count), total, key_of(key)).tolist()
    scores = [row.scores[0], *(row.scores[1 + place] for place in chosen)] if row.scores else []
    return PairRow(row.query, row.positive, [row.negatives[place] for place in chosen], scores)


def _run(
    steps: range,
    batches: Iterator[Batch],
    stepper: Stepper,
    stage: StageConfig,
    processes: Processes,
    folder: RunFolder,
    save: Callable[[int], None],
    stop: Callable[[], bool],
) -> bool:
    reports: list[StepReport] = []
    bar = tqdm(steps, initial=steps.start, total=steps.stop, unit=" steps", disable=not processes.is_first)
    for number, batch in zip(bar, batches, strict=True):
        objective = objective_of(stage, taught=batch.teacher is not None)
        reports.append(stepper.step(number, batch.collated, objective, batch.teacher))
        done = number + 1
        if done % stage.log_every_steps == 0 or done == steps.stop:
            if processes.is_first:
                folder.log(mean_of(done, reports))
            bar.set_postfix(loss=f"{reports[-1].loss:.3f}")
            reports = []
        stopping = asked_to_stop(stop(), processes)
        if stopping or done == steps.stop or done % stage.save_every_steps == 0:
            save(done)
        if stopping and done < steps.stop:
            logger.warning("stopped behind step %d; continue with --resume", done)
            return False
    return True


def ahead(batch_of: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    """The batches of the steps, made in a thread while others are trained on."""
    with ThreadPoolExecutor(1, "collate") as thread:
        waiting = [thread.submit(batch_of, step) for step in steps[:AHEAD]]
        for step in steps:
            if step + AHEAD < steps.stop:
                waiting.append(thread.submit(batch_of, step + AHEAD))
            yield waiting.pop(0).result()


def asked_to_stop(here: bool, processes: Processes) -> bool:
    """Whether any process was: all end behind the same step."""
    asked = torch.tensor(float(here), device=processes.device)
    processes.add_up([asked])
    return bool(asked > 0)


def mean_of(step: int, reports: list[StepReport]) -> dict[str, float]:
    """A line of the curve."""
    count = len(reports)
    return {
        "step": step,
        "loss": sum(report.loss for report in reports) / count,
        "gradient_norm": sum(report.gradient_norm for report in reports) / count,
        "learning_rate": reports[-1].rate,
    }
