"""Losses: pure functions of tensors."""

import torch
from torch.nn import functional


def info_nce(
    queries: torch.Tensor,
    passages: torch.Tensor,
    temperature: float,
    negatives: torch.Tensor | None = None,
    same_meaning: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score each query against every passage of the batch; its own passage is the right answer.

    queries, passages: [B, H] unit vectors, row i of one belongs to row i of the other.
    negatives: [M, H] unit vectors that are wrong for every query, or None.
    same_meaning: bool[B, B], true where another row's passage would also be right: not counted as wrong. Or None.
    Returns a scalar.
    """
    scores = queries @ passages.T / temperature
    if same_meaning is not None:
        others = same_meaning & ~torch.eye(len(queries), dtype=torch.bool)
        scores = scores.masked_fill(others, float("-inf"))
    if negatives is not None:
        scores = torch.cat([scores, queries @ negatives.T / temperature], dim=1)
    return functional.cross_entropy(scores, torch.arange(len(queries)))


def info_nce_both_ways(
    left: torch.Tensor,
    right: torch.Tensor,
    temperature: float,
    negatives: torch.Tensor | None = None,
    same_meaning: torch.Tensor | None = None,
) -> torch.Tensor:
    """Average InfoNCE from left to right and from right to left; negatives count on the right side only.

    same_meaning must be symmetric.
    """
    forth = info_nce(left, right, temperature, negatives, same_meaning)
    return 0.5 * (forth + info_nce(right, left, temperature, same_meaning=same_meaning))


def distillation(student_scores: torch.Tensor, teacher_scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compare how student and teacher rank the passages of a batch for each query: KL(teacher || student).

    Both [B, B], cosines of query i with passage j. Only the scores meet, so the two may live in different spaces.
    Not multiplied by temperature ** 2: at 0.05 the term would vanish. Returns the mean over the queries, a scalar.
    """
    wanted = functional.log_softmax(teacher_scores / temperature, dim=1)
    given = functional.log_softmax(student_scores / temperature, dim=1)
    return functional.kl_div(given, wanted, log_target=True, reduction="batchmean")


def cosine_distance(vectors: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Average 1 - cosine of matching rows. Both [B, H] unit vectors. Returns a scalar."""
    return (1.0 - (vectors * anchors).sum(dim=1)).mean()
