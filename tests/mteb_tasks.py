"""mteb's own task classes on data in memory, and vectors that are computed once for both sides of a comparison."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import mteb
import numpy as np
from datasets import Dataset
from mteb.abstasks import AbsTask

from training.mteb_bridge import SystemEncoder
from training.mteb_protocols import MtebProtocol
from training.system import Side, System
from training.vectors import Vectors, VectorSystem

ENCODE = {"batch_size": 64}
TOY = Path(__file__).parent / "data" / "train"


def toy_pairs(name: str, lang: str) -> list[tuple[str, str]]:
    """The pairs of one language of a toy file, each text once on its side."""
    with gzip.open(TOY / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = {row["query"]: row["positive"] for row in rows if row["lang"] == lang}
    return list({positive: (query, positive) for query, positive in pairs.items()}.values())


def fixed_vectors(system: System, texts: Sequence[str]) -> VectorSystem:
    """The system with one vector for each text, however it is batched.

    Float32 sums depend on the width of a batch, by 1e-7; ranks of near ties would too.
    """
    table = _table(system, texts)
    return VectorSystem(system.identity, lambda some, _role, _instruction: np.stack([table[text] for text in some]))


def _table(system: System, texts: Sequence[str]) -> dict[str, Vectors]:
    side = Side(list(dict.fromkeys(texts)), "query")
    return dict(zip(side.texts, np.asarray(system.read([side]).features(side)), strict=True))


def mteb_scores(
    name: str, system: System, data: object, *, split: str = "test", predictions: Path | None = None
) -> Mapping[str, object]:
    """What mteb's task of that name says, on `data` in the place of its own."""
    task = with_data(name, data)
    encoder = SystemEncoder(system, MtebProtocol("paper"))
    subset = task.hf_subsets[0]
    return task.evaluate(encoder, split, [subset], encode_kwargs=ENCODE, prediction_folder=predictions)[subset]


def with_data(name: str, data: object) -> AbsTask:
    """The task with its data loaded already; mteb then asks no hub."""
    task = mteb.get_task(name)
    task.hf_subsets = task.hf_subsets[:1]
    task.dataset = {task.hf_subsets[0]: data}
    task.data_loaded = True
    return task


def texts_of(*columns: Sequence[str], **named: Sequence[object]) -> Dataset:
    """A data set of the columns sentence1, sentence2, …, and of named ones."""
    return Dataset.from_dict({f"sentence{n}": list(column) for n, column in enumerate(columns, start=1)} | named)
