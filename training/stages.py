"""The two contrastive stages: weak pairs in batches of tens of thousands, then labelled ones with hard negatives."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from tqdm import tqdm

from service.recipe.spec import file_sha256
from training.backbone import load_backbone
from training.config import FinetuneConfig, ModelConfig, PretrainConfig, Stage, StageConfig
from training.errors import BadTrainConfig, TrainingError
from training.loop import stop_on_signal
from training.objective import Objective
from training.pair_store import PairStore, hashes_of, open_stores, sources_of
from training.prepare import check_settings
from training.processes import Processes, join_processes
from training.run_folder import RunFolder
from training.stage_batches import Batch, StageBatches, negatives_of
from training.step import Stepper, StepReport

logger = logging.getLogger(__name__)


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
    weights that an uninterrupted run would have had, with as many processes and threads, on CPUs (GPUs add up in an
    order of their own).   should_stop: asked behind every step; SIGTERM and Ctrl-C by
    default.
    """
    stage = config.stage(name)
    processes = join_processes()
    stop = should_stop or stop_on_signal()
    if stage.batch_pairs % processes.count:
        raise BadTrainConfig(f"batch_pairs {stage.batch_pairs} can't be shared by {processes.count} processes")
    stores = open_stores(pairs, stage.sources)
    for store in stores:
        if store.about.name in stage.sources:
            check_settings(store, stage.sources[store.about.name], stage.filter)
    weights = {store.about.name: 1.0 for store in stores} | {key: entry.weight for key, entry in stage.sources.items()}
    steps = steps_of(stage, sum(store.shape.rows for store in stores if weights[store.about.name] > 0))
    begin_with = str(start.resolve()) if start else config.backbone
    identity = identity_of(config, name, begin_with, stores)
    folder = RunFolder(out)
    folder.check(identity, resume=resume)
    processes.wait()
    first, state, begin_from = 0, None, (begin_with, "" if start else config.tokenizer)
    found = folder.load()
    if found:
        first, state, begin_from = cast(int, found[1]["step"]), found[1]["optimizer"], (str(found[0]), "")
    del found
    check_together(first, processes)
    backbone = load_backbone(*begin_from, processes.device, freeze_positions=stage.freeze_positions)
    stepper = Stepper(backbone, stage, steps, config.seed, processes)
    if state is not None:
        stepper.optimizer.load_state_dict(cast(dict[str, object], state))
    del state
    if processes.is_first:
        # Behind everything that a wrong setting ends: what can't begin leaves no folder.
        folder.begin(identity)
        folder.cut_curve(first)
        tell_of(stores, stage)
    batches = StageBatches(stage, stores, weights, backbone, steps=steps, seed=config.seed, processes=processes)

    def save(done: int) -> None:
        if processes.is_first:
            state = {"step": done, "optimizer": stepper.optimizer.state_dict()}
            extra: dict[str, object] = {
                "pairs_seen": done * stage.batch_pairs,
                "steps": steps,
                "processes": processes.count,
            }
            extra["sources"] = sources_of(stores)
            folder.save(done, backbone.model, backbone.tokenizer, state, identity, extra)
        processes.wait()

    due = range(first, steps)
    finished = _run(due, batches.ahead(due), stepper, stage, processes, folder, save, stop)
    processes.leave()
    return finished


def identity_of(config: ModelConfig, name: Stage, begin_with: str, stores: Sequence[PairStore]) -> dict[str, object]:
    """What a run is made from: settings, the model it begins with, data. A resumed run must have the same."""
    settings = config.model_dump(mode="json", exclude={"pretrain", "mine", "finetune"})
    # How often a run reports and saves changes nothing of what it makes.
    settings[name] = config.stage(name).model_dump(mode="json", exclude={"save_every_steps", "log_every_steps"})
    weights = Path(begin_with) / "model.safetensors"
    return {
        "stage": name,
        "settings": settings,
        "begin_with": {"model": begin_with, "weights_sha256": file_sha256(weights) if weights.is_file() else None},
        "data": hashes_of(stores),
    }


def check_together(first: int, processes: Processes) -> None:
    """Raise TrainingError where processes would go on from different steps: machines that share no folder."""
    steps = processes.gather(torch.tensor([first], device=processes.device)).tolist()
    if len(set(steps)) > 1:
        raise TrainingError(
            f"the processes find checkpoints of steps {', '.join(map(str, steps))}; --out must be one folder for all"
        )


def tell_of(stores: Sequence[PairStore], stage: StageConfig) -> None:
    """Log what each source is trained with."""
    for store in stores:
        count = negatives_of(stage, store)
        taught = bool(count) and store.about.scored
        logger.info(
            "%s: %d pairs, %d hard negatives, %s",
            store.about.name,
            store.shape.rows,
            count,
            "a teacher's scores" if taught else "no teacher",
        )
        if isinstance(stage, FinetuneConfig) and count < stage.hard_negatives:
            logger.warning(
                "%s: %d hard negatives are wanted, some row has only %d", store.about.name, stage.hard_negatives, count
            )


def steps_of(stage: PretrainConfig | FinetuneConfig, rows: int) -> int:
    """How many steps a stage has: as stated, or as many as its epochs take. Raises BadTrainConfig."""
    steps = stage.steps if isinstance(stage, PretrainConfig) else max(1, stage.epochs * rows // stage.batch_pairs)
    if stage.warmup_steps >= steps:
        raise BadTrainConfig(
            f"warmup_steps {stage.warmup_steps} leave nothing of the {steps} steps of this stage; lower them"
        )
    return steps


def objective_of(stage: StageConfig, *, taught: bool) -> Objective:
    """InfoNCE alone, or a little of it beside the teacher's ranking."""
    if taught and isinstance(stage, FinetuneConfig):
        return Objective(stage.temperature, stage.direction, stage.alpha, stage.teacher_temperature)
    return Objective(stage.temperature, stage.direction)


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
