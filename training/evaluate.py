"""How good a system is, on the sets of the data folder.

    python -m training evaluate model_repo/me5_nano/2 --data DATA --quick
    python -m training evaluate runs/nano/12000 --data DATA --tasks flores,xquad --json figures.json

Takes a model version (computed by the gateway's own engine) or a checkpoint (computed by torch); `evaluate` itself asks
any system through the protocol of `training.system` and nothing else. A figure means little without the prompts it was
made with, so every result carries its protocol, and the hashes of the model and the data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from service.engine import Engine, open_engine, vectors_of
from service.recipe.golden import Precision
from service.recipe.prompts import Prompts
from service.recipe.spec import MODEL_FILE, SPEC_FILE, TOKENIZER_FILE, file_sha256, graph_file, load_spec
from service.recipe.tokens import load_tokenizer
from training.collection import Embed, Recipe, Run, embed_collection
from training.errors import CheckpointError, DataError
from training.eval_sets import EVAL_SETS, ON_REQUEST, QUICK
from training.eval_shapes import Bitext, Classification, Clustering, EvalSet, Retrieval, Similarity, Subset
from training.label_scores import classification_scores, clustering_scores, drawn_samples
from training.protocol import Protocol, drawn_rows, sides
from training.scores import Scored, bitext_scores, retrieval_scores, similarity_scores
from training.sentence_folder import read_sentence_folder, weight_hashes
from training.system import Identity, Nearness, Reading, Side, System
from training.vectors import VectorSystem, prompts_by_role, takes_instructions

EngineName = Literal["onnx", "openvino"]
# Of nearness that is held at once: 64 MiB.
BLOCK_CELLS = 1 << 24


@dataclass(frozen=True)
class MeasuredModel:
    """A model ready to embed, and what identifies it.

    name: the last two parts of its path, for the rest means nothing on another machine.   files: name → SHA-256.
    details: what else is known, such as `bytes`, the size of the weights' file.
    """

    name: str
    engine: str
    dtype: str
    prompts: Prompts
    max_tokens: int
    files: dict[str, str]
    embed: Embed
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def system(self) -> VectorSystem:
        """The model as something that can be evaluated."""
        prompts = prompts_by_role(self.prompts)
        engine = f"{self.engine} {self.dtype}"
        identity = Identity(self.name, engine, self.dtype, prompts, self.max_tokens, self.files, self.details)
        return VectorSystem(identity, self.embed)


@dataclass(frozen=True)
class Evaluation:
    """Everything that a figure depends on, and the figures.

    data: file → SHA-256.   scored: set → subset → its measures.
    """

    system: Identity
    protocol: Protocol
    data: dict[str, str]
    sets: tuple[EvalSet, ...]
    scored: dict[str, dict[str, Scored]]


def open_model(
    folder: Path,
    *,
    engine: EngineName = "onnx",
    precision: Precision = "fp32",
    threads: int = 0,
    progress: bool = False,
    device: str = "cpu",
) -> MeasuredModel:
    """A model version by the gateway's engine, or a checkpoint by torch in float32; told apart by their files.

    device: that torch computes on.
    """
    if (folder / SPEC_FILE).is_file() and (folder / MODEL_FILE).is_file():
        spec = load_spec(folder)
        recipe = Recipe(load_tokenizer(folder / TOKENIZER_FILE), spec.prompts, spec.max_tokens, spec.pad_id)
        run = _run_of(open_engine(folder, spec, engine=engine, precision=precision, threads=threads))
        files = spec.files
        computed: tuple[str, str] = (engine, precision)
        weights, details = graph_file(folder, spec, engine, precision), {"weights": str(spec.weights)}
    elif (folder / "config.json").is_file():
        # Here and not above: a model version is measured without torch.
        from training.sentence_model import load_sentence_model, torch_run

        facts = read_sentence_folder(folder)
        recipe = Recipe(load_tokenizer(folder / TOKENIZER_FILE), facts.prompts, facts.max_tokens, facts.pad_id)
        model, weights = load_sentence_model(folder).to(device), folder / "model.safetensors"
        run, computed = torch_run(model, threads), ("torch", "fp32")
        files = {name: file_sha256(folder / name) for name in ("config.json", TOKENIZER_FILE)} | weight_hashes(folder)
        details = {"parameters": str(sum(each.numel() for each in model.parameters()))}
    else:
        raise CheckpointError(f"{folder} is neither a model version ({SPEC_FILE}, {MODEL_FILE}) nor a checkpoint")
    name = "/".join(folder.resolve().parts[-2:])
    embed = partial(embed_collection, run, recipe, progress=progress)
    details["bytes"] = str(_stored_bytes(weights))
    return MeasuredModel(name, *computed, recipe.prompts, recipe.max_tokens, files, embed, details)


def _stored_bytes(weights: Path) -> int:
    """Of a file and of those beside it that hold the rest of its weights, such as model.onnx.data."""
    return sum(path.stat().st_size for path in weights.parent.glob(f"{weights.name}*"))


def _run_of(engine: Engine) -> Run:
    return lambda batch: vectors_of(engine.run(batch), batch)


def choose_sets(names: Sequence[str], *, quick: bool) -> tuple[EvalSet, ...]:
    """The sets by name; without names all that every data folder has, or the quick three."""
    if unknown := [name for name in names if name not in EVAL_SETS]:
        raise DataError(f"no evaluation set named {', '.join(unknown)}; there are {', '.join(EVAL_SETS)}")
    available = {eval_set.name: eval_set for eval_set in QUICK} if quick else {}
    if names:
        return tuple(available.get(name, EVAL_SETS[name]) for name in names)
    return QUICK if quick else tuple(each for each in EVAL_SETS.values() if each not in ON_REQUEST)


def evaluate(
    system: System,
    data: Path,
    sets: Sequence[EvalSet],
    protocol: Protocol,
    scored: Callable[[EvalSet, dict[str, Scored]], None] | None = None,
) -> Evaluation:
    """Score the system on each set; `scored` is told each result as soon as it is there."""
    # All files are read before the first text is embedded: a missing one must not show after half an hour.
    hashes = {file: _data_sha256(data / file) for eval_set in sets for file in eval_set.files}
    found: dict[str, dict[str, Scored]] = {}
    for eval_set in sets:
        found[eval_set.name] = score_set(system, data, eval_set, protocol)
        if scored is not None:
            scored(eval_set, found[eval_set.name])
    return Evaluation(system.identity, protocol, hashes, tuple(sets), found)


def score_set(system: System, data: Path, eval_set: EvalSet, protocol: Protocol) -> dict[str, Scored]:
    """The measures of one set, subset by subset. Raises DataError where the set has nothing to measure."""
    try:
        subsets = eval_set.read(data)
    except (KeyError, ValueError, EOFError, OSError) as error:
        reason = f"lacks the field {error}" if isinstance(error, KeyError) else f"can't be read: {error}"
        raise DataError(f"{eval_set.name}: a line of {', '.join(eval_set.files)} {reason}") from error
    if not subsets:
        raise DataError(f"{eval_set.name}: {data / eval_set.files[0]} holds nothing")
    instruction = eval_set.instruction if takes_instructions(system.identity) else None
    asked = {name: questions(subset, protocol, instruction) for name, subset in subsets.items()}
    for name, each in asked.items():
        if not all(side.texts for question in each for side in question):
            raise DataError(f"{eval_set.name}, {name}: no texts in {', '.join(eval_set.files)}")
    # Each side once: what is read twice would count twice where words are counted.
    read = {id(side): side for each in asked.values() for question in each for side in question}
    reading = system.read(list(read.values()))
    found = {}
    for name, subset in subsets.items():
        try:
            found[name] = score(subset, reading, asked[name])
        except DataError as error:
            raise DataError(f"{eval_set.name}, {name}: {error.message}") from error
    return found


def questions(
    subset: Subset, protocol: Protocol, instruction: str | None = None, cells: int = BLOCK_CELLS
) -> list[list[Side]]:
    """What a system is asked about a subset: lists of sides, the last of which is searched where there is a search.

    Those that search are in parts whose nearness to all that is searched has so many cells. A bitext may be searched
    both ways.
    """
    lists = sides(subset, protocol, instruction)
    match subset:
        case Bitext(one_way=one_way):
            sources, targets = lists
            ways = [(sources, targets)] if one_way else [(sources, targets), (targets, sources)]
            return [[*_parts(asking, asked, cells), asked] for asking, asked in ways]
        case Retrieval():
            queries, documents = lists
            return [[*_parts(queries, documents, cells), documents]]
        case _:
            return [lists]


def _parts(asking: Side, asked: Side, cells: int) -> list[Side]:
    rows = max(1, cells // max(1, len(asked.texts)))
    if len(asking.texts) <= rows:
        return [asking]
    return [replace(asking, texts=asking.texts[at : at + rows]) for at in range(0, len(asking.texts), rows)]


def score(subset: Subset, reading: Reading, asked: Sequence[Sequence[Side]]) -> Scored:
    """The measures of one subset, by what the system says to its questions."""
    match subset:
        case Bitext():
            return bitext_scores(*(_blocks(reading, question) for question in asked))
        case Similarity(judged=judged):
            firsts, seconds = asked[0]
            return similarity_scores(reading.pair_nearness(firsts, seconds), judged)
        case Retrieval(relevant=relevant):
            return retrieval_scores(_blocks(reading, asked[0]), relevant)
        case Classification():
            places = {row: place for place, row in enumerate(drawn_rows(subset))}
            samples = [[places[row] for row in rows] for rows in drawn_samples(subset.train_labels)]
            learned = [subset.train_labels[row] for row in places]
            train, test = (reading.features(side) for side in asked[0])
            return classification_scores(train, learned, samples, test, subset.labels)
        case Clustering(labels=labels):
            return clustering_scores(reading.features(asked[0][0]), labels)


def _blocks(reading: Reading, question: Sequence[Side]) -> Iterator[Nearness]:
    *parts, searched = question
    return (reading.nearness(part, searched) for part in parts)


def _data_sha256(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} is missing; --data (or ME5_DATA) must name the folder that holds eval/")
    return file_sha256(path)
