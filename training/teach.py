"""Training the teacher: a cross-encoder on mined pairs, that learns to tell the positive from hard negatives."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from service.recipe.spec import file_sha256
from training.ahead import made_ahead
from training.checkpoint import write_json
from training.config import ModelConfig, TeachConfig
from training.cross_encoder import CrossEncoder, begin_cross_encoder, open_cross_encoder
from training.errors import BadTrainConfig, BadTrainingData
from training.loop import stop_on_signal
from training.pair_store import PairStore, hashes_of, open_stores
from training.permutation import key_of
from training.processes import Processes, join_processes
from training.run_folder import RunFolder
from training.sampling import sampler_of
from training.stage_batches import choose_negatives
from training.stage_loop import check_together, run_stage
from training.teach_step import TeachBatch, TeachStepper

logger = logging.getLogger(__name__)


def train_teacher(
    config: ModelConfig,
    *,
    pairs: Path,
    out: Path,
    start: Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Train on mined pairs; whether it came to the end. The re-ranker is `out/latest`, in the layout of transformers.

    start: an encoder to put a new head on, or a re-ranker to go on from; the backbone by default.   resume,
    should_stop: as for the stages.
    """
    teach = config.teach
    processes = join_processes()
    stop = should_stop or stop_on_signal()
    if teach.batch_queries % processes.count:
        raise BadTrainConfig(f"batch_queries {teach.batch_queries} can't be shared by {processes.count} processes")
    stores = rankable(open_stores(pairs, config.labelled.sources), pairs)
    weights = {name: source.weight for name, source in config.labelled.sources.items()}
    steps = steps_of(teach, sum(store.shape.rows for store in stores if weights.get(store.about.name, 1.0) > 0))
    begin_with = str(start.resolve()) if start else config.backbone
    identity = _identity_of(config, begin_with, stores) | {"weights": dict(sorted(weights.items()))}
    folder = RunFolder(out)
    folder.check(identity, resume=resume)
    processes.wait()
    first, found = 0, folder.load()
    if found:
        first = cast(int, found[1]["step"])
    check_together(first, processes)
    if found:
        encoder = open_cross_encoder(str(found[0]), processes.device, teach.max_tokens)
    else:
        tokenizer = "" if start else config.tokenizer
        encoder = begin_cross_encoder(begin_with, tokenizer, processes.device, teach.max_tokens, config.seed)
    stepper = TeachStepper(encoder, teach, steps, config.seed, processes)
    if found:
        stepper.optimizer.load_state_dict(cast(dict[str, object], found[1]["optimizer"]))
    del found
    if processes.is_first:
        folder.begin(identity)
        folder.cut_curve(first)
        for store in stores:
            count = negatives_of(teach, store)
            logger.info("%s: %d queries, %d negatives", store.about.name, store.shape.rows, count)
    batches = TeachBatches(teach, stores, weights, encoder, steps=steps, seed=config.seed, processes=processes)

    def save(done: int) -> None:
        if processes.is_first:
            state = {"step": done, "optimizer": stepper.optimizer.state_dict()}
            extra = {"queries_seen": done * teach.batch_queries, "steps": steps, "processes": processes.count}

            def layout(unfinished: Path) -> None:
                write_ranker_files(unfinished, encoder)

            folder.save(done, encoder.model, encoder.tokenizer, state, identity, extra, layout)
        processes.wait()

    due = range(first, steps)
    finished = run_stage(
        due,
        batches.ahead(due),
        stepper.step,
        save,
        stop,
        pace=teach,
        batch_pairs=teach.batch_queries,
        processes=processes,
        folder=folder,
    )
    processes.leave()
    return finished


class TeachBatches:
    """A batch is a function of its step: one source's queries, each with its positive and some of its negatives."""

    def __init__(
        self,
        teach: TeachConfig,
        stores: Sequence[PairStore],
        weights: Mapping[str, float],
        encoder: CrossEncoder,
        *,
        steps: int,
        seed: int,
        processes: Processes,
    ) -> None:
        """weights: of the sources, by name.   steps: of the whole training."""
        self._teach, self._stores, self._encoder, self._seed = teach, stores, encoder, seed
        self._rows = processes.share(teach.batch_queries)
        shapes = [store.shape for store in stores]
        self._sampler = sampler_of(teach.mixture, shapes, weights, teach.batch_queries, steps=steps, seed=seed)

    def of(self, step: int) -> TeachBatch:
        """This process's queries of the step."""
        drawn, mine = self._sampler.batch(step), self._rows
        store = self._stores[drawn.sources[0]]
        count = negatives_of(self._teach, store)
        keys = key_of(self._seed, step, np.arange(mine.start, mine.stop)).tolist()
        rows = store.rows(drawn.rows[mine.start : mine.stop])
        chosen = [choose_negatives(row, count, key) for row, key in zip(rows, keys, strict=True)]
        texts = [(row.query, passage) for row in chosen for passage in (row.positive, *row.negatives)]
        tokens = self._encoder.tokenize(texts)
        groups = [tokens[place : place + 1 + count] for place in range(0, len(tokens), 1 + count)]
        return TeachBatch(list(groups), store.about.name)

    def ahead(self, steps: range) -> Iterator[TeachBatch]:
        """The batches of the steps."""
        return made_ahead(self.of, steps)


def rankable(stores: Sequence[PairStore], folder: Path) -> list[PairStore]:
    """The sources whose every query has a negative. Raises BadTrainingData where there is none."""
    kept = [store for store in stores if store.about.negatives]
    for store in stores:
        if not store.about.negatives:
            logger.warning("left out %s: some query has no negatives", store.about.name)
    if not kept:
        raise BadTrainingData(
            f"no source in {folder} has negatives for each query; find them by `python -m training mine`, and name its "
            "folder by --pairs"
        )
    return kept


def negatives_of(teach: TeachConfig, store: PairStore) -> int:
    """How many negatives a source's queries are read with."""
    return min(teach.negatives, store.about.negatives)


def steps_of(teach: TeachConfig, queries: int) -> int:
    """As many as the epochs take. Raises BadTrainConfig where the warm-up is longer."""
    steps = max(1, teach.epochs * queries // teach.batch_queries)
    if teach.warmup_steps >= steps:
        raise BadTrainConfig(
            f"teach.warmup_steps {teach.warmup_steps} leave nothing of the {steps} steps of the teacher; lower them"
        )
    return steps


def write_ranker_files(folder: Path, encoder: CrossEncoder) -> None:
    """What transformers and CrossEncoder of Sentence Transformers read beside model and tokenizer."""
    marks = encoder.tokenizer.encode("a").tokens
    names = {"bos_token": marks[0], "cls_token": marks[0], "eos_token": marks[-1], "sep_token": marks[-1]}
    names["pad_token"] = str(encoder.tokenizer.id_to_token(encoder.pad_id))
    unknown = [name for name in ("<unk>", "[UNK]") if encoder.tokenizer.token_to_id(name) is not None]
    names |= {"unk_token": unknown[0]} if unknown else {}
    inputs = ["input_ids", "attention_mask"]
    if (getattr(encoder.model.config, "type_vocab_size", 0) or 0) > 1:
        inputs.insert(1, "token_type_ids")
    write_json(
        folder / "tokenizer_config.json",
        {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "model_input_names": inputs},
    )


def _identity_of(config: ModelConfig, begin_with: str, stores: Sequence[PairStore]) -> dict[str, object]:
    """What the teacher is made from; a resumed run must have the same."""
    settings = config.model_dump(mode="json", include={"name", "seed", "backbone", "tokenizer"})
    settings["teach"] = config.teach.model_dump(mode="json", exclude={"teacher", "save_every_steps", "log_every_steps"})
    weights = Path(begin_with) / "model.safetensors"
    return {
        "stage": "teach",
        "settings": settings,
        "begin_with": {"model": begin_with, "weights_sha256": file_sha256(weights) if weights.is_file() else None},
        "data": hashes_of(stores),
    }
