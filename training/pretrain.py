"""Stage 1, contrastive pre-training: InfoNCE with in-batch negatives over large batches of weak pairs."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import torch
from tqdm import tqdm

from service.recipe.prompts import E5_PROMPTS
from training.backbone import load_backbone
from training.bootstrap import stop_on_signal
from training.collate import Collated, Collator
from training.config import ModelConfig, PretrainConfig
from training.errors import BadTrainConfig
from training.objective import Objective
from training.pair_store import hashes_of, open_stores
from training.processes import Processes, join_processes
from training.run_folder import RunFolder
from training.sampling import Sampler, source_odds
from training.step import Stepper, StepReport

logger = logging.getLogger(__name__)

# Batches that are tokenised ahead of the one that is trained on.
AHEAD = 2


def pretrain(
    config: ModelConfig,
    *,
    pairs: Path,
    out: Path,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Train the backbone on prepared pairs; whether it came to the end. The model is `out/latest`.

    resume: go on from the newest checkpoint, to the weights that an uninterrupted run would have had.
    should_stop: asked behind every step; SIGTERM and Ctrl-C by default.
    """
    stage = config.pretrain
    processes = join_processes()
    stop = should_stop or stop_on_signal()
    if stage.batch_pairs % processes.count:
        raise BadTrainConfig(f"batch_pairs {stage.batch_pairs} can't be shared by {processes.count} processes")
    stores = open_stores(pairs)
    identity: dict[str, object] = {
        "stage": "pretrain",
        "settings": config.model_dump(mode="json", exclude={"finetune"}),
        "data": hashes_of(stores),
    }
    folder = RunFolder(out)
    folder.check(identity, resume=resume)
    processes.wait()
    if processes.is_first:
        folder.begin(identity, resume=True)
    found = folder.load()
    source = str(found[0]) if found else config.backbone
    backbone = load_backbone(
        source, "" if found else config.tokenizer, processes.device, freeze_positions=stage.freeze_positions
    )
    stepper = Stepper(backbone, stage, stage.steps, config.seed, processes)
    first = 0
    if found:
        stepper.optimizer.load_state_dict(cast(dict[str, object], found[1]["optimizer"]))
        first = cast(int, found[1]["step"])
    sampler = Sampler(
        [store.shape for store in stores],
        source_odds(
            [store.shape for store in stores],
            exponent=stage.mixture.source_exponent,
            cap=stage.mixture.source_cap,
            weights={name: entry.weight for name, entry in stage.sources.items()},
        ),
        batch_pairs=stage.batch_pairs,
        language_exponent=stage.mixture.language_exponent,
        seed=config.seed,
    )
    collator = Collator(
        backbone.tokenizer,
        E5_PROMPTS,
        pad_id=backbone.pad_id,
        max_tokens=stage.max_tokens,
        chunk_tokens=stage.chunk_tokens,
    )

    def batch_of(step: int) -> Collated:
        drawn = sampler.batch(step)
        store = stores[drawn.source]
        mine = processes.share(stage.batch_pairs)
        about = store.about
        return collator.collate(store.rows(drawn.rows[mine.start : mine.stop]), (about.query_role, about.positive_role))

    def save(steps: int) -> None:
        if processes.is_first:
            state = {"step": steps, "optimizer": stepper.optimizer.state_dict()}
            extra = {"pairs_seen": steps * stage.batch_pairs, "processes": processes.count}
            folder.save(steps, backbone.model, backbone.tokenizer, state, identity, extra)
        processes.wait()

    if processes.is_first:
        folder.cut_curve(first)
    objective = Objective(stage.temperature, stage.direction)
    steps = range(first, stage.steps)
    return _run(steps, ahead(batch_of, steps), stepper, objective, stage, processes, folder, save, stop)


def _run(
    steps: range,
    batches: Iterator[Collated],
    stepper: Stepper,
    objective: Objective,
    stage: PretrainConfig,
    processes: Processes,
    folder: RunFolder,
    save: Callable[[int], None],
    stop: Callable[[], bool],
) -> bool:
    reports: list[StepReport] = []
    bar = tqdm(steps, initial=steps.start, total=steps.stop, unit=" steps", disable=not processes.is_first)
    for number, batch in zip(bar, batches, strict=True):
        reports.append(stepper.step(number, batch, objective))
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


def ahead(batch_of: Callable[[int], Collated], steps: range) -> Iterator[Collated]:
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
