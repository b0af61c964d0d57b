"""mteb's tasks on a System: mteb's own classes read, score and write; here texts get their prompts and vectors.

Results are mteb's files, and beside each what such a file does not say: the prompts, the precision, the longest input,
the hashes of the model.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import cast

import mteb
import numpy as np
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.results import TaskResult
from mteb.types import PromptType
from scipy.sparse import issparse

from training.errors import DataError, UnknownSystem
from training.mteb_protocols import MIRACL_PAPER, MtebProtocol, asked_by
from training.system import Identity, Side, System
from training.vectors import Vectors, takes_instructions, unit

logger = logging.getLogger(__name__)

FORMAT = 1
BATCH_ROWS = 1024
_PROBES = ("How tall is the tower?", "The tower is 368 metres tall.", "A loaf of bread")


class SystemEncoder(AbsEncoder):
    """A System as mteb sees an encoder."""

    def __init__(self, system: System, protocol: MtebProtocol, dimension: int | None = None) -> None:
        self.system = system
        self.protocol = protocol
        self.products = system.identity.details.get("similarity") == "dot"
        self.instruct = takes_instructions(system.identity)
        # How each side of the task was asked about, and whether its vectors were of length one; for the sidecar.
        self.asked: dict[str, dict[str, object]] = {}
        self.mteb_model_meta = model_meta(system.identity, dimension, products=self.products)

    def encode(
        self,
        inputs: Iterable[dict[str, list[str]]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **_: object,
    ) -> Vectors:
        """Vectors of a data loader's texts, float32[N, H]; scaled as the protocol says."""
        texts = [text for batch in inputs for text in batch["text"]]
        asked = asked_by(self.protocol, task_metadata, prompt_type, self.get_instruction if self.instruct else None)
        side = Side(texts, asked.role, asked.instruction)
        found = self.system.read([side]).features(side)
        assert not issparse(found)
        vectors = np.asarray(found, dtype=np.float32)
        as_they_are = self.products or (
            task_metadata.type == "Classification" and not self.protocol.unit_classification
        )
        given = vectors if as_they_are else unit(vectors)
        scaled = bool(np.allclose(np.linalg.norm(given, axis=1), 1, atol=1e-3))
        self.asked[str(prompt_type.value if prompt_type else "text")] = {**asdict(asked), "unit": scaled}
        return given


def run_mteb(
    system: System,
    names: Sequence[str],
    protocol: MtebProtocol,
    out: Path,
    *,
    data: Path | None = None,
    finished: Callable[[TaskResult], None] | None = None,
) -> list[Path]:
    """Run tasks and benchmarks by mteb's names, each into out/TASK.json and out/TASK.protocol.json.

    data: a folder with a task's data in a folder of the task's name, in mteb's layout; what it lacks comes from the
    hub's cache, or from the hub.   finished: told each result as soon as it is written.
    A task whose results are in `out` already, of the same system and protocol, is not run again.
    """
    encoder = SystemEncoder(system, protocol, dimension_of(system))
    # Its constructor is not the one of the protocol, which mteb itself calls for registered models only.
    model = cast(EncoderProtocol, encoder)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for task in choose_tasks(names):
        path, beside = out / f"{task.metadata.name}.json", out / f"{task.metadata.name}.protocol.json"
        head = describe(system.identity, protocol)
        if path.is_file() and _head(beside) == head["sha256"]:
            logger.info("%s is there already", path)
            written.append(path)
            continue
        encoder.asked.clear()
        load_task(task, data)
        found = mteb.evaluate(
            model, task, cache=None, co2_tracker=False, encode_kwargs={"batch_size": BATCH_ROWS},
            show_progress_bar=False,
        )  # fmt: skip
        for part in parts_of(task):
            part.unload_data()
        result = found.task_results[0]
        document = {**head, "asked": dict(encoder.asked), "averages": averages(result)}
        result.to_disk(path)
        beside.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        written.append(path)
        if finished is not None:
            finished(result)
    return written


def choose_tasks(names: Sequence[str]) -> list[AbsTask]:
    """The tasks of the named benchmarks and the named tasks, each once."""
    chosen: dict[str, AbsTask] = {}
    for name in names:
        for task in _named(name):
            chosen.setdefault(task.metadata.name, task)
    return list(chosen.values())


def _named(name: str) -> list[AbsTask]:
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError as no_benchmark:
        try:
            return [mteb.get_task(name)]
        except KeyError as no_task:
            hints = " ".join(str(error.args[0]) for error in (no_task, no_benchmark))
            raise DataError(f"mteb {version('mteb')} has no task and no benchmark {name!r}: {hints}") from no_task


def parts_of(task: AbsTask) -> list[AbsTask]:
    """The tasks that have data: of CQADupstackRetrieval, twelve."""
    return list(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else [task]


def load_task(task: AbsTask, data: Path | None) -> None:
    """Load a task's data, or say in one line where it has to be."""
    for part in parts_of(task):
        about = part.metadata
        folder = data / about.name if data is not None else None
        if folder is not None and folder.is_dir():
            # A copy: mteb's tasks share their metadata with every other task of the class.
            part.metadata = about.model_copy(update={"dataset": {**about.dataset, "path": str(folder)}})
        try:
            part.load_data()
        # datasets, the hub's client and its HTTP library each raise their own.
        except Exception as error:
            place = f"{about.dataset['path']} at revision {about.dataset['revision'][:12]}"
            raise DataError(
                f"mteb's task {about.name}: its data ({place}) can't be loaded: {_first_line(error)}; "
                "load it once where the hub can be reached and bring its cache along (HF_HOME), or put it into "
                f"{folder or f'DATA/{about.name} and name DATA'}"
            ) from error


def averages(result: TaskResult) -> dict[str, dict[str, float]]:
    """The mean of the main score over the subsets of each split; for MIRACL also over the paper's 16 languages."""
    found: dict[str, dict[str, float]] = {}
    for split, rows in result.scores.items():
        found[split] = {"main_score": float(np.mean([row["main_score"] for row in rows]))}
        if result.task_name.startswith("MIRACL"):
            for name, languages in (("16 of the paper", MIRACL_PAPER), ("all", {row["hf_subset"] for row in rows})):
                chosen = [row for row in rows if row["hf_subset"] in languages]
                if len(chosen) == len(languages):
                    for measure in ("ndcg_at_10", "recall_at_100"):
                        value = float(np.mean([row[measure] for row in chosen]))
                        found[split][f"{measure}, {name} ({len(chosen)})"] = value
    return found


def describe(identity: Identity, protocol: MtebProtocol) -> dict[str, object]:
    """What a figure depends on beside mteb's data, and the hash of it."""
    document: dict[str, object] = {
        "format": FORMAT,
        "system": {**asdict(identity), "prompts": dict(identity.prompts)},
        "protocol": asdict(protocol),
        "versions": {name: version(name) for name in ("mteb", "datasets", "scikit-learn", "numpy")},
    }
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    return {**document, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def model_meta(identity: Identity, dimension: int | None, *, products: bool) -> ModelMeta:
    """What mteb wants to know of a model; what it can't know of ours stays open."""
    name = identity.name if "/" in identity.name else f"me5/{identity.name}"
    files = json.dumps([dict(identity.files), identity.dtype, dict(identity.details)], sort_keys=True)
    return ModelMeta(
        loader=None,
        name=name,
        revision=hashlib.sha256(files.encode()).hexdigest()[:12],
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=identity.max_tokens,
        embed_dim=dimension,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=[],
        similarity_fn_name=ScoringFunction.DOT_PRODUCT if products else ScoringFunction.COSINE,
        use_instructions=takes_instructions(identity) or any(identity.prompts.values()),
        training_datasets=None,
    )


def dimension_of(system: System) -> int:
    """Length of the system's vectors; UnknownSystem where products of its features are not its nearness."""
    side = Side(_PROBES, "query")
    reading = system.read([side])
    features = reading.features(side)
    refused = UnknownSystem(
        f"{system.identity.name} has no vectors of its texts, and mteb's tasks compare vectors; "
        "evaluate it on this project's own sets, or name an encoder"
    )
    if issparse(features):
        raise refused
    rows = np.asarray(features, dtype=np.float32)
    compared = rows if system.identity.details.get("similarity") == "dot" else unit(rows)
    near = reading.nearness(side, side)
    # Float32 sums; what is not a product of these rows is off by far more.
    if not np.allclose(compared @ compared.T, near, rtol=1e-3, atol=1e-3):
        raise refused
    return int(rows.shape[1])


def _head(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("sha256")
    except (OSError, ValueError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
