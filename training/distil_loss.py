"""What one path of the student is moved by: the teacher's vectors, where the teacher knows the text, else the partner.

For a pair of which the teacher knows both sides each text is led to the vector that is given for it, and to the
similarities that this vector has to the other texts. For all others InfoNCE leads the two sides to each other.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.bootstrap_config import DistilConfig
from training.loss import cosine_distance, info_nce_both_ways, similarity_divergence
from training.targets import NO_TARGET


@dataclass(frozen=True)
class Plan:
    """What one batch reads: which texts the student embeds, and how each is used.

    left, right: int64[B], text numbers.   read_right: int64[K], the rows whose right side the student reads too.
    targets: int64[B, 2], the English text of each side, NO_TARGET where there is none.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    read_right: NDArray[np.int64]
    targets: NDArray[np.int64]

    @property
    def taught(self) -> NDArray[np.int64]:
        """The rows of which the teacher knows both sides, int64[T]."""
        return np.flatnonzero((self.targets != NO_TARGET).all(axis=1))


def plan(pairs: NDArray[np.int64], targets: NDArray[np.int64], share: float, rng: np.random.Generator) -> Plan:
    """Put the English side of a translation to the right; read a share of the right sides of pairs that are taught.

    The right side of any other is read always, for its partner has nothing else to be led to.
    """
    left, right = pairs[:, 0].copy(), pairs[:, 1].copy()
    targets = targets.copy()
    turned = targets[:, 0] == left
    turned &= (targets[:, 1] != right) & (targets[:, 1] != NO_TARGET)
    left[turned], right[turned] = pairs[turned, 1], pairs[turned, 0]
    targets[turned] = targets[turned][:, ::-1]
    read = (targets == NO_TARGET).any(axis=1) | (rng.random(len(left)) < share)
    return Plan(left, right, np.flatnonzero(read), targets)


@dataclass(frozen=True)
class Given:
    """The teacher's part of a batch, the same for every path.

    left, right: [T, H], its vectors of both sides of the taught rows.   recent: [R, H], of texts of the steps before.
    """

    left: torch.Tensor
    right: torch.Tensor
    recent: torch.Tensor


def path_loss(left: torch.Tensor, right: torch.Tensor, read: Plan, given: Given, config: DistilConfig) -> torch.Tensor:
    """left: [B, H], the student's.   right: [K, H], the student's of the rows that it read on that side.

    Returns a scalar, the mean over the pairs.
    """
    pairs, taught = len(left), read.taught
    loss = torch.zeros(())
    if len(taught):
        goals = torch.cat([given.right, given.recent])
        loss = loss + len(taught) / pairs * lead(left[taught], given.left, goals, config)
    both = np.intersect1d(read.read_right, taught)
    if len(both):
        own = given.right[np.searchsorted(taught, both)]
        mine = right[np.searchsorted(read.read_right, both)]
        loss = loss + len(both) / pairs * lead(mine, own, torch.cat([own, given.recent]), config)
    free = np.setdiff1d(np.arange(pairs), taught)
    if len(free):
        partners = right[np.searchsorted(read.read_right, free)]
        goals = torch.cat([partners, given.right, given.recent])
        similar = (partners @ goals.T).detach() > config.same_meaning_cosine
        apart = info_nce_both_ways(left[free], goals, config.temperature, same_meaning=similar)
        loss = loss + len(free) / pairs * apart
    return loss


@dataclass(frozen=True)
class GivenPassages:
    """The teacher's part of a batch of passages that were put together.

    passages: [G, H], for each the direction of its sentences' vectors.   recent: [R, H], texts of the steps before.
    """

    passages: torch.Tensor
    recent: torch.Tensor


def passage_loss(
    passages: torch.Tensor, questions: torch.Tensor, given: GivenPassages, config: DistilConfig
) -> torch.Tensor:
    """Lead each passage to where its sentences are, and each question to its passage. Both [G, H]; returns a scalar."""
    near = lead(passages, given.passages, torch.cat([given.passages, given.recent]), config)
    return near + info_nce_both_ways(questions, passages, config.temperature)


def lead(vectors: torch.Tensor, own: torch.Tensor, goals: torch.Tensor, config: DistilConfig) -> torch.Tensor:
    """To the teacher's own vectors [B, H], and to their similarities with its goals [P, H], P >= B."""
    near = config.pull_weight * cosine_distance(vectors, own)
    return near + similarity_divergence(vectors, own, goals, config.temperature)
