"""The contrastive stages: weak pairs in batches of tens of thousands, then labelled ones with hard negatives."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from service.recipe.spec import file_sha256
from training.backbone import load_backbone
from training.checkpoint import write_sentence_transformers_files
from training.config import FinetuneConfig, ModelConfig, PretrainConfig, Stage, StageConfig
from training.errors import BadTrainConfig
from training.loop import stop_on_signal
from training.objective import Objective
from training.pair_store import PairStore, hashes_of, open_stores, sources_of
from training.prepare import check_settings
from training.processes import join_processes
from training.run_folder import RunFolder
from training.stage_batches import Batch, StageBatches, negatives_of, prompts_of
from training.stage_loop import check_together, run_stage
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

    def write_layout(unfinished: Path) -> None:
        write_sentence_transformers_files(unfinished, backbone.model.config.hidden_size, prompts_of(stage))

    def save(done: int) -> None:
        if processes.is_first:
            state = {"step": done, "optimizer": stepper.optimizer.state_dict()}
            extra: dict[str, object] = {
                "pairs_seen": done * stage.batch_pairs,
                "steps": steps,
                "processes": processes.count,
                "sources": sources_of(stores),
            }
            folder.save(done, backbone.model, backbone.tokenizer, state, identity, extra, write_layout)
        processes.wait()

    def move(number: int, batch: Batch) -> StepReport:
        objective = objective_of(stage, taught=batch.teacher is not None)
        return stepper.step(number, batch.collated, objective, batch.teacher)

    due = range(first, steps)
    finished = run_stage(
        due,
        batches.ahead(due),
        move,
        save,
        stop,
        pace=stage,
        batch_pairs=stage.batch_pairs,
        processes=processes,
        folder=folder,
    )
    processes.leave()
    return finished


def identity_of(config: ModelConfig, name: Stage, begin_with: str, stores: Sequence[PairStore]) -> dict[str, object]:
    """What a run is made from: settings, the model it begins with, data. A resumed run must have the same."""
    settings = config.model_dump(mode="json", include={"name", "seed", "backbone", "tokenizer"})
    # How often a run reports and saves changes nothing of what it makes.
    settings[name] = config.stage(name).model_dump(mode="json", exclude={"save_every_steps", "log_every_steps"})
    weights = Path(begin_with) / "model.safetensors"
    return {
        "stage": name,
        "settings": settings,
        "begin_with": {"model": begin_with, "weights_sha256": file_sha256(weights) if weights.is_file() else None},
        "data": hashes_of(stores),
    }


def tell_of(stores: Sequence[PairStore], stage: StageConfig) -> None:
    """Log what each source is trained with."""
    if (
        not stage.mixture.one_source_a_batch
        and len({(negatives_of(stage, one), one.about.scored) for one in stores}) > 1
    ):
        logger.warning(
            "one_source_a_batch is off, and sources differ: a batch has as many hard negatives as the poorest source "
            "in it, and a teacher where all of them are scored"
        )
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
