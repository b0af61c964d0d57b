"""A result of `evaluate`: one JSON file with the figures, all that they depend on, and what each example gave.

The values by example lie in it as a NumPy archive in base64: hundreds of thousands of numbers that nobody reads, and
without which no difference between two systems can be tested afterwards.
"""

import base64
import binascii
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import BadResult, TrainingError
from training.eval_reading import FLORES_20, FLORES_CORE, MIRACL_16
from training.eval_sets import EVAL_SETS
from training.eval_shapes import MAIN_MEASURE, EvalSet, SubsetKind, Task
from training.evaluate import Evaluation
from training.protocol import protocol_block
from training.scores import Examples, Scored
from training.system import Identity

FORMAT = 2
# What comes of reading a file of another shape, or one that was cut short.
DAMAGES = (KeyError, TypeError, ValueError, AttributeError, OSError, binascii.Error, zipfile.BadZipFile, zlib.error)
VERSIONS_OF = ("numpy", "scipy", "scikit-learn", "tokenizers")
Scores = Mapping[str, Mapping[str, float]]  # subset → measure → value
# Averages over named languages that figures are published with: name → set, languages.
NAMED_MEANS: dict[str, tuple[str, tuple[str, ...]]] = {
    "flores-core": ("flores", FLORES_CORE),
    "flores-20": ("flores", FLORES_20),
    "miracl-16": ("miracl", MIRACL_16),
}


@dataclass(frozen=True)
class SetResult:
    """One set of a result.   data: file → SHA-256.   scores: subset → measure.   examples: subset → name → [N]."""

    name: str
    task: Task
    subsets: SubsetKind
    parallel: bool
    data: Mapping[str, str]
    scores: Scores
    examples: Mapping[str, Examples]

    @property
    def measure(self) -> str:
        """The measure that stands for the set."""
        return MAIN_MEASURE[self.task]

    @property
    def values(self) -> dict[str, float]:
        """Subset → the main measure."""
        return {subset: measures[self.measure] for subset, measures in self.scores.items()}


@dataclass(frozen=True)
class Result:
    """A result as it was written."""

    system: Identity
    protocol: Mapping[str, object]
    sets: Mapping[str, SetResult]


def means(scores: Scores, names: Sequence[str] = ()) -> dict[str, float]:
    """Each measure averaged over the subsets, or over the named ones."""
    chosen = [scores[name] for name in (names or scores)]
    return {measure: float(np.mean([subset[measure] for subset in chosen])) for measure in chosen[0]}


def summary(scores: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """The averages of every set, and the named ones of those that have all their languages."""
    found = {name: means(subsets) for name, subsets in scores.items()}
    for name, (of, languages) in NAMED_MEANS.items():
        if scores.get(of, {}).keys() >= set(languages):
            found[name] = means(scores[of], languages)
    return found


def measures_of(scored: Mapping[str, Scored]) -> Scores:
    """The figures without the examples."""
    return {subset: each.measures for subset, each in scored.items()}


def table(eval_set: EvalSet, scores: Scores) -> str:
    """One set as lines of text: a row for each subset, then the averages."""
    measures = list(next(iter(scores.values())))
    # A matrix has hundreds of pairs: its mean here, the cells in the report.
    listed = {} if eval_set.subsets == "pair" else scores
    rows = [(name, [subset[measure] for measure in measures]) for name, subset in listed.items()]
    averages = [(f"mean of {len(scores)} pairs" if eval_set.subsets == "pair" else "mean", means(scores))]
    # English is what the starting model knows: its neighbours' mean says more.
    if eval_set.name == "stsb" and "en" in scores and len(scores) > 1:
        others = [name for name in scores if name != "en"]
        averages.insert(0, (f"other {len(others)}", means(scores, others)))
    for of, languages in NAMED_MEANS.values():
        if eval_set.name == of and scores.keys() > set(languages):
            averages.insert(0, (f"mean of {len(languages)}", means(scores, languages)))
    rows += [(name, [values[measure] for measure in measures]) for name, values in averages if len(scores) > 1]
    width = max(14, *(len(name) + 2 for name, _ in rows))
    head = f"{eval_set.name:<{width}}" + "".join(f"{measure:>18}" for measure in measures)
    body = (f"{name:<{width}}" + "".join(f"{value:>18.4f}" for value in row) for name, row in rows)
    return "\n".join([head, *body, ""])


def as_json(result: Evaluation) -> str:
    """The evaluation as a JSON document, complete enough to be compared with another one."""
    scores = {name: measures_of(scored) for name, scored in result.scored.items()}
    examples = {name: {sub: each.examples for sub, each in scored.items()} for name, scored in result.scored.items()}
    document = {
        "format": FORMAT,
        "system": asdict(result.system),
        "protocol": protocol_block(result.protocol, result.system, list(EVAL_SETS.values())),
        "data": result.data,
        "versions": {name: version(name) for name in VERSIONS_OF},
        "means": summary(scores),
        "sets": {
            each.name: {
                "task": each.task,
                "subsets": each.subsets,
                "parallel": each.parallel,
                "files": list(each.files),
                "counts": {sub: len(_first(values)) for sub, values in examples[each.name].items()},
                "scores": scores[each.name],
            }
            for each in result.sets
        },
        "examples": _packed(examples),
    }
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def check_place(path: Path) -> None:
    """Refuse a file that write_result could not write, before an hour of work. Raises TrainingError."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise TrainingError(f"{path} can't be written; give --json a file in a folder that is there")


def write_result(path: Path, result: Evaluation) -> None:
    """Write a result whole or not at all. Raises TrainingError where the folder takes no file."""
    check_place(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(as_json(result), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise TrainingError(f"{path} can't be written: {error.strerror}; give --json another place") from error


def read_result(path: Path) -> Result:
    """Read what write_result wrote. Raises BadResult where it is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadResult(f"{path} is no result that can be read: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadResult(f"{path} is not a result of format {FORMAT}; write it again by `python -m training evaluate`")
    try:
        examples = _unpacked(document["examples"], {name: each["counts"] for name, each in document["sets"].items()})
        sets = {
            name: SetResult(
                name,
                each["task"],
                each["subsets"],
                each["parallel"],
                {file: document["data"][file] for file in each["files"]},
                each["scores"],
                examples[name],
            )
            for name, each in document["sets"].items()
        }
        return Result(Identity(**document["system"]), document["protocol"], sets)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        binascii.Error,
        zipfile.BadZipFile,
        zlib.error,
        OSError,
    ) as error:
        raise BadResult(f"{path} is damaged: {type(error).__name__} {error}; write it again") from error


def _packed(examples: Mapping[str, Mapping[str, Examples]]) -> str:
    """The examples of all subsets of a set end to end, one array for each name: `set/name`."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, subsets in examples.items():
        for kind in next(iter(subsets.values())):
            arrays[f"{name}/{kind}"] = np.concatenate([values[kind] for values in subsets.values()])
    stream = io.BytesIO()
    # Its stub takes any keyword for allow_pickle.
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _unpacked(
    text: str, counts: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, dict[str, NDArray[np.generic]]]]:
    found: dict[str, dict[str, dict[str, NDArray[np.generic]]]] = {
        name: {subset: {} for subset in subsets} for name, subsets in counts.items()
    }
    with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as arrays:
        for key in arrays.files:
            name, kind = key.split("/")
            parts = np.split(arrays[key], np.cumsum(list(counts[name].values()))[:-1])
            if sum(counts[name].values()) != len(arrays[key]):
                raise ValueError(f"{key} holds {len(arrays[key])} examples")
            for subset, part in zip(counts[name], parts, strict=True):
                found[name][subset][kind] = part
    return found


def _first(examples: Examples) -> NDArray[np.generic]:
    return next(iter(examples.values()))
