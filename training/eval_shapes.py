"""The shapes that an evaluation set can have, each with its own measures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Task = Literal["bitext", "similarity", "retrieval", "classification", "clustering"]
# What the subsets of a set are. Only languages are compared with each other in an audit.
SubsetKind = Literal["language", "year", "pair"]
# The measure that stands for a set in tables, plots and comparisons.
MAIN_MEASURE: dict[Task, str] = {
    "bitext": "accuracy",
    "similarity": "spearman",
    "retrieval": "ndcg@10",
    "classification": "accuracy",
    "clustering": "v-measure",
}


@dataclass(frozen=True)
class Bitext:
    """Row i of the targets is the translation of row i of the sources, and of no other.

    one_way: only the nearest neighbour from source to target is asked for, as in a matrix of languages, where the way
    back is another cell.
    """

    sources: list[str]
    targets: list[str]
    one_way: bool = False


@dataclass(frozen=True)
class Similarity:
    """Pairs of sentences and how alike people found them."""

    firsts: list[str]
    seconds: list[str]
    judged: list[float]


@dataclass(frozen=True)
class Retrieval:
    """Queries, the pool they are searched in, and for each query: row of a relevant document → grade."""

    queries: list[str]
    documents: list[str]
    relevant: list[dict[int, int]]


@dataclass(frozen=True)
class Classification:
    """Labelled texts to learn from, and labelled texts to be judged by."""

    train_texts: list[str]
    train_labels: list[str]
    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Clustering:
    """Texts, and the topic of each."""

    texts: list[str]
    labels: list[str]


Subset = Bitext | Similarity | Retrieval | Classification | Clustering


@dataclass(frozen=True)
class EvalSet:
    """One set: its files under the data folder, and how they are read.

    instruction: what an instruct model is told.   parallel: example i is the same thing in every subset, so examples
    are drawn for all subsets together when a difference is tested.
    """

    name: str
    task: Task
    files: tuple[str, ...]
    read: Callable[[Path], Mapping[str, Subset]]
    instruction: str
    subsets: SubsetKind = "language"
    parallel: bool = False
