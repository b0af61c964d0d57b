"""How good a model is, on the sets of the data folder: bitext mining, semantic similarity, retrieval.

    python -m training evaluate model_repo/me5_nano/1 --data DATA --quick
    python -m training evaluate runs/nano/12000 --data DATA --tasks flores,xquad --json figures.json

Takes a model version (computed by the gateway's own engine) or a checkpoint (computed by torch). A figure means little
without the prompts it was made with, so every result carries its protocol, and the hashes of the model and the data.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from service.engine import Engine, open_engine, vectors_of
from service.recipe.golden import Precision
from service.recipe.prompts import Prompts, Role
from service.recipe.spec import MODEL_FILE, SPEC_FILE, TOKENIZER_FILE, file_sha256, load_spec
from service.recipe.tokens import load_tokenizer
from training.collection import Embed, Recipe, Run, Vectors, embed_collection
from training.errors import CheckpointError, DataError
from training.eval_sets import EVAL_SETS, FLORES_CORE, QUICK, Bitext, EvalSet, Retrieval, Similarity, Subset
from training.scores import bitext_scores, retrieval_scores, similarity_scores
from training.sentence_folder import read_sentence_folder

FORMAT = 1
EngineName = Literal["onnx", "openvino"]
Scores = dict[str, dict[str, float]]  # subset → measure → value


@dataclass(frozen=True)
class Protocol:
    """Which role each side of a task has; None is a text without any prompt."""

    name: str
    bitext: Role | None
    similarity: Role | None
    question: Role
    document: Role


PROTOCOLS = {
    # The mE5 paper and unilm/e5: "query: " on both sides for everything but retrieval.
    "paper": Protocol("paper", bitext="query", similarity="query", question="query", document="passage"),
    # mteb's present registration of mE5: prompts for retrieval only. Published figures of both kinds are about.
    "mteb-current": Protocol("mteb-current", bitext=None, similarity=None, question="query", document="passage"),
}


@dataclass(frozen=True)
class MeasuredModel:
    """A model ready to embed, and what identifies it.

    name: the last two parts of its path, for the rest means nothing on another machine.   files: name → SHA-256.
    """

    name: str
    engine: str
    prompts: Prompts
    max_tokens: int
    files: dict[str, str]
    embed: Embed


@dataclass(frozen=True)
class Evaluation:
    """Everything that a figure depends on, and the figures."""

    model: MeasuredModel
    protocol: Protocol
    data: dict[str, str]
    scores: dict[str, Scores]


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
        opened = open_engine(folder, spec, engine=engine, precision=precision, threads=threads)
        run, name, files = _run_of(opened), f"{engine} {precision}", spec.files
    elif (folder / "config.json").is_file():
        # Here and not above: a model version is measured without torch.
        from training.sentence_model import load_sentence_model, torch_run

        facts = read_sentence_folder(folder)
        recipe = Recipe(load_tokenizer(folder / TOKENIZER_FILE), facts.prompts, facts.max_tokens, facts.pad_id)
        run, name = torch_run(load_sentence_model(folder).to(device), threads), "torch fp32"
        files = {file: file_sha256(folder / file) for file in ("config.json", "model.safetensors", TOKENIZER_FILE)}
    else:
        raise CheckpointError(f"{folder} is neither a model version ({SPEC_FILE}, {MODEL_FILE}) nor a checkpoint")
    embed = partial(embed_collection, run, recipe, progress=progress)
    return MeasuredModel("/".join(folder.resolve().parts[-2:]), name, recipe.prompts, recipe.max_tokens, files, embed)


def _run_of(engine: Engine) -> Run:
    return lambda batch: vectors_of(engine.run(batch), batch)


def choose_sets(names: Sequence[str], *, quick: bool) -> tuple[EvalSet, ...]:
    """The sets by name; without names all of them, or the quick three."""
    if unknown := [name for name in names if name not in EVAL_SETS]:
        raise DataError(f"no evaluation set named {', '.join(unknown)}; there are {', '.join(EVAL_SETS)}")
    available = {eval_set.name: eval_set for eval_set in QUICK} if quick else {}
    if names:
        return tuple(available.get(name, EVAL_SETS[name]) for name in names)
    return QUICK if quick else tuple(EVAL_SETS.values())


def evaluate(
    model: MeasuredModel,
    data: Path,
    sets: Sequence[EvalSet],
    protocol: Protocol,
    scored: Callable[[EvalSet, Scores], None] | None = None,
) -> Evaluation:
    """Score the model on each set; `scored` is told each result as soon as it is there."""
    # All files are read before the first text is embedded: a missing one must not show after half an hour.
    hashes = {file: _data_sha256(data / file) for eval_set in sets for file in eval_set.files}
    scores: dict[str, Scores] = {}
    for eval_set in sets:
        scores[eval_set.name] = score_set(model.embed, data, eval_set, protocol)
        if scored is not None:
            scored(eval_set, scores[eval_set.name])
    return Evaluation(model, protocol, hashes, scores)


def score_set(embed: Embed, data: Path, eval_set: EvalSet, protocol: Protocol) -> Scores:
    """The measures of one set, subset by subset."""
    subsets = eval_set.read(data)
    # All texts of a role are embedded together, so that texts of like length meet across the subsets.
    texts: dict[Role | None, list[str]] = defaultdict(list)
    for subset in subsets.values():
        for role, side in sides(subset, protocol):
            texts[role] += side
    vectors = {role: embed(collected, role) for role, collected in texts.items()}
    used: Counter[Role | None] = Counter()
    scores: Scores = {}
    for name, subset in subsets.items():
        left, right = (_take(vectors[role], used, role, len(side)) for role, side in sides(subset, protocol))
        scores[name] = score(subset, left, right)
    return scores


def sides(subset: Subset, protocol: Protocol) -> list[tuple[Role | None, list[str]]]:
    """The two lists of texts of a subset, and the role each has."""
    match subset:
        case Bitext(sources, targets):
            return [(protocol.bitext, sources), (protocol.bitext, targets)]
        case Similarity(firsts, seconds, _):
            return [(protocol.similarity, firsts), (protocol.similarity, seconds)]
        case Retrieval(queries, documents, _):
            return [(protocol.question, queries), (protocol.document, documents)]


def score(subset: Subset, left: Vectors, right: Vectors) -> dict[str, float]:
    """The measures of one subset, from the vectors of its two sides."""
    match subset:
        case Bitext():
            return bitext_scores(left, right)
        case Similarity(judged=judged):
            return similarity_scores(left, right, judged)
        case Retrieval(relevant=relevant):
            return retrieval_scores(left, right, relevant)


def _take(vectors: Vectors, used: Counter[Role | None], role: Role | None, count: int) -> Vectors:
    used[role] += count
    return vectors[used[role] - count : used[role]]


def means(scores: Scores, names: Sequence[str] = ()) -> dict[str, float]:
    """Each measure averaged over the subsets, or over the named ones."""
    chosen = [scores[name] for name in (names or scores)]
    return {measure: float(np.mean([subset[measure] for subset in chosen])) for measure in chosen[0]}


def summary(scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """The averages of every set; FLORES also over the 13 core languages."""
    found = {name: means(subsets) for name, subsets in scores.items()}
    if scores.get("flores", {}).keys() >= set(FLORES_CORE):
        found["flores-core"] = means(scores["flores"], FLORES_CORE)
    return found


def table(eval_set: EvalSet, scores: Scores) -> str:
    """One set as lines of text: a row for each subset, then the averages."""
    measures = list(next(iter(scores.values())))
    rows = [(name, [subset[measure] for measure in measures]) for name, subset in scores.items()]
    averages = [("mean", means(scores))]
    # English is what the starting model knows: its neighbours' mean says more.
    if eval_set.name == "stsb" and "en" in scores and len(scores) > 1:
        others = [name for name in scores if name != "en"]
        averages.insert(0, (f"other {len(others)}", means(scores, others)))
    if eval_set.name == "flores" and scores.keys() > set(FLORES_CORE):
        averages.insert(0, (f"mean of {len(FLORES_CORE)}", means(scores, FLORES_CORE)))
    rows += [(name, [values[measure] for measure in measures]) for name, values in averages if len(scores) > 1]
    head = f"{eval_set.name:<14}" + "".join(f"{measure:>12}" for measure in measures)
    return "\n".join([head, *(f"{name:<14}" + "".join(f"{value:>12.4f}" for value in row) for name, row in rows), ""])


def as_json(result: Evaluation) -> str:
    """The evaluation as a JSON document, complete enough to be compared with another one."""
    protocol = asdict(result.protocol)
    document = {
        "format": FORMAT,
        "model": {
            "name": result.model.name,
            "engine": result.model.engine,
            "prompts": asdict(result.model.prompts),
            "max_tokens": result.model.max_tokens,
            "files": result.model.files,
        },
        "protocol": {**protocol, "sha256": hashlib.sha256(json.dumps(protocol).encode()).hexdigest()},
        "data": result.data,
        "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn", "tokenizers")},
        "means": summary(result.scores),
        "scores": result.scores,
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _data_sha256(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} is missing; --data (or ME5_DATA) must name the folder that holds eval/")
    return file_sha256(path)
