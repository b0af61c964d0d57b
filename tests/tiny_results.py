"""Results made of a few numbers, as `evaluate` would have written them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.eval_sets import EVAL_SETS
from training.evaluate import Evaluation
from training.protocol import PROTOCOLS
from training.result import Result, read_result, write_result
from training.scores import Scored
from training.system import Identity

TOY = Identity("toy/1", "onnx fp32", "fp32", {"query": "query: ", "passage": "passage: "}, 512)
DATA = {file: f"hash of {file}" for each in EVAL_SETS.values() for file in each.files}


def bitext_of(hits: Sequence[bool]) -> Scored:
    """A subset in which these sentences find their translation, and the others the next sentence's."""
    own = np.arange(len(hits))
    found = np.where(hits, own, (own + 1) % len(hits))
    return Scored({"accuracy": float(np.mean(hits))}, {"found": found.astype(np.uint16)})


def share_of(right: float, count: int = 100) -> Scored:
    """A subset of which this share is right."""
    return bitext_of([row < round(right * count) for row in range(count)])


def retrieval_of(values: Sequence[float]) -> Scored:
    """A subset with these nDCG@10."""
    return Scored({"ndcg@10": float(np.mean(values))}, {"ndcg@10": np.asarray(values)})


Sets = Mapping[str, Mapping[str, Scored]]


def write_toy(path: Path, scored: Sets, system: Identity = TOY, **changed: object) -> Path:
    """Write a result with these sets.   changed: other fields of the evaluation."""
    sets = tuple(EVAL_SETS[name] for name in scored)
    data = {file: DATA[file] for each in sets for file in each.files}
    evaluation = Evaluation(system, PROTOCOLS["paper"], data, sets, {name: dict(each) for name, each in scored.items()})
    write_result(path, replace(evaluation, **changed))
    return path


def toy(path: Path, scored: Sets, system: Identity = TOY, **changed: object) -> Result:
    """The same, read again."""
    return read_result(write_toy(path, scored, system, **changed))
