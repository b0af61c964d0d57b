"""What a batch of pairs is trained on: InfoNCE over the whole batch, and a teacher's ranking of each query's own group.

Every function adds up over a range of the batch's queries, against the passages of all of it. So processes take ranges,
a large batch is scored piece by piece, and the sum is always that of one process with one matrix.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

Direction = Literal["query_to_passage", "both"]


@dataclass(frozen=True)
class Vectors:
    """queries, positives: [B, H] unit vectors, row by row a pair.   negatives: [B, K, H], K hard ones a query."""

    queries: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor


@dataclass(frozen=True)
class Keys:
    """What each text is, as a number: equal texts have equal keys. int64[B], int64[B], int64[B, K]."""

    queries: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """alpha × InfoNCE + KL(teacher || student), the report's second stage; the first has alpha 1 and no teacher.

    temperature: of cosines, 0.01 in the report.   teacher_temperature: of the teacher's scores.
    """

    temperature: float
    direction: Direction = "query_to_passage"
    alpha: float = 1.0
    teacher_temperature: float = 1.0

    def add_up(self, vectors: Vectors, keys: Keys, rows: range, teacher: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of these queries, divided by the batch's size: over all rows it is the batch's mean.

        rows: of the batch.   teacher: [B, 1 + K] scores of each query with its positive and its negatives.
        """
        total = self.alpha * info_nce(vectors, keys, rows, self.temperature)
        if self.direction == "both":
            total = (total + self.alpha * info_nce_back(vectors, keys, rows, self.temperature)) / 2
        if teacher is not None:
            total = total + distillation(vectors, rows, teacher, self.temperature, self.teacher_temperature)
        return total / len(vectors.queries)


def info_nce(vectors: Vectors, keys: Keys, rows: range, temperature: float) -> torch.Tensor:
    """Each query against every positive and every hard negative of the batch. Returns the sum over the rows.

    A passage that is known to be right for a query is none of its negatives: its own positive met again, any positive
    of the same query, and the query's own text, which pairs of like texts have on the other side.
    """
    picked = slice(rows.start, rows.stop)
    own = torch.arange(rows.start, rows.stop, device=vectors.queries.device)
    queries = vectors.queries[picked]
    right = keys.positives[picked, None]
    scores = queries @ vectors.positives.T
    asked = keys.queries[picked, None]
    also_right = (keys.positives == right) | (keys.queries == asked) | (keys.positives == asked)
    also_right[torch.arange(len(own), device=own.device), own] = False
    if vectors.negatives.shape[1]:
        scores = torch.cat([scores, queries @ vectors.negatives.flatten(0, 1).T], dim=1)
        wrong = keys.negatives.flatten()
        of_same_query = torch.isin(_pair_keys(asked, wrong), _pair_keys(keys.queries, keys.positives))
        also_right = torch.cat([also_right, (wrong == right) | (wrong == asked) | of_same_query], dim=1)
    scores = (scores / temperature).masked_fill(also_right, float("-inf"))
    return functional.cross_entropy(scores, own, reduction="sum")


def _pair_keys(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """One number for a query with a passage; products wrap around."""
    return queries * 0x5851F42D4C957F2D + passages


def info_nce_back(vectors: Vectors, keys: Keys, rows: range, temperature: float) -> torch.Tensor:
    """Each positive against every query of the batch. Returns the sum over the rows."""
    turned = Vectors(vectors.positives, vectors.queries, vectors.negatives[:, :0])
    return info_nce(turned, Keys(keys.positives, keys.queries, keys.negatives[:, :0]), rows, temperature)


def distillation(
    vectors: Vectors, rows: range, teacher: torch.Tensor, temperature: float, teacher_temperature: float
) -> torch.Tensor:
    """KL(teacher || student) over each query's own group, its positive and its negatives. The sum over the rows.

    Not multiplied by temperature ** 2, as is the custom with softened classes: at 0.01 nothing would be left of it.
    Source of the form: SimLM's fine-tuning code, which the report's author names.
    """
    picked = slice(rows.start, rows.stop)
    group = torch.cat([vectors.positives[picked, None], vectors.negatives[picked]], dim=1)
    cosines = torch.einsum("bh,bkh->bk", vectors.queries[picked], group)
    given = functional.log_softmax(cosines / temperature, dim=1)
    wanted = functional.log_softmax(teacher[picked].to(given.dtype) / teacher_temperature, dim=1)
    return functional.kl_div(given, wanted, log_target=True, reduction="sum")
