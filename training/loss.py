"""Losses: pure functions of tensors."""

import torch
from torch.nn import functional


def info_nce(
    queries: torch.Tensor,
    passages: torch.Tensor,
    temperature: float,
    same_meaning: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score each query against every passage of the batch; its own passage is the right answer.

    queries: [B, H] unit vectors, row i belongs to row i of passages.   passages: [P, H], P >= B, the rest only wrong.
    same_meaning: bool[B, P], true where another row's passage would also be right: not counted as wrong. Or None.
    Returns a scalar.
    """
    scores = queries @ passages.T / temperature
    if same_meaning is not None:
        others = same_meaning & ~torch.eye(*scores.shape, dtype=torch.bool)
        scores = scores.masked_fill(others, float("-inf"))
    return functional.cross_entropy(scores, torch.arange(len(queries)))


def info_nce_both_ways(
    left: torch.Tensor,
    right: torch.Tensor,
    temperature: float,
    same_meaning: torch.Tensor | None = None,
) -> torch.Tensor:
    """Average InfoNCE from left to right and from right to left.

    left: [B, H].   right: [P, H], P >= B; what is behind row B belongs to no row of left, and is wrong for all of them.
    same_meaning: as for info_nce, its first B columns symmetric.
    """
    rows = len(left)
    forth = info_nce(left, right, temperature, same_meaning)
    back = info_nce(right[:rows], left, temperature, None if same_meaning is None else same_meaning[:, :rows])
    return 0.5 * (forth + back)


def similarity_divergence(
    vectors: torch.Tensor, own: torch.Tensor, goals: torch.Tensor, temperature: float
) -> torch.Tensor:
    """How far the similarities that a student sees are from those that its teacher sees: KL divergence, both ways.

    vectors: [B, H], the student's.   own: [B, H], the teacher's of the same rows.   goals: [P, H], P >= B, the
    teacher's; row i is the partner of row i.   All unit vectors. Returns a scalar.

    Where InfoNCE asks that every other text be as far away as can be, this asks that it be as far as the teacher has
    it: 0 is reached by the teacher's vectors, and nothing is gained beyond them.
    """
    seen, wanted = vectors @ goals.T / temperature, own @ goals.T / temperature
    rows = len(vectors)
    forth = _divergence(seen, wanted)
    back = _divergence(seen[:, :rows].T, wanted[:, :rows].T)
    return 0.5 * (forth + back)


def _divergence(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL(softmax(wanted) || softmax(scores)), the mean over rows."""
    log_seen, log_wanted = functional.log_softmax(scores, dim=1), functional.log_softmax(wanted, dim=1)
    return functional.kl_div(log_seen, log_wanted, reduction="batchmean", log_target=True)


def cosine_distance(vectors: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Average 1 - cosine of matching rows. Both [B, H] unit vectors. Returns a scalar."""
    return (1.0 - (vectors * anchors).sum(dim=1)).mean()
