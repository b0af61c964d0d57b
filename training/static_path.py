"""The second path of a small encoder: a text as the weighted sum of its token vectors under one matrix.

Layers know how words change each other, and find it hard to keep apart what two texts of other words say; a sum of word
vectors knows nothing of order, and tells texts of other words apart from a few thousand pairs on. Both read one token
table, so the sum costs a matrix of H × H and a number a token, and next to no time.

    static = unit(Σ weight · (token vector - middle) · matrix)
    vector = unit((1 - share) · unit(mean of the last layer's states) + share · static)

Each path is trained to be right alone (distil.py). Trained on their sum they come to lean on each other: then the sum
is hardly better than the better of the two, where two that err apart are together better than both.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from service.recipe.pooling import l2_normalize
from training.sentence_folder import STATIC_FILE, has_static_path


class StaticPath(torch.nn.Module):
    """weights: float32[V, 1], 0 for special tokens.   middle: [H].   matrix: [H, H].

    share: [], its part of the whole vector.
    """

    weights: torch.Tensor
    middle: torch.Tensor
    share: torch.Tensor

    def __init__(self, weights: torch.Tensor, middle: torch.Tensor, matrix: torch.Tensor, share: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("middle", middle)
        self.register_buffer("share", share)
        self.matrix = torch.nn.Parameter(matrix)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """ids, mask: [B, T].   rows: float32[B, T, H], the tokens' vectors.   Returns [B, H] of length one."""
        weights = functional.embedding(ids, self.weights) * mask.to(rows.dtype)[:, :, None]
        total = ((rows - self.middle) * weights).sum(1)
        return l2_normalize(total @ self.matrix)

    def of_bags(
        self, vectors: torch.Tensor, weights: torch.Tensor, places: torch.Tensor, starts: torch.Tensor
    ) -> torch.Tensor:
        """The same for texts without padding, each distinct token computed once. Returns unit vectors [B, H].

        vectors: [U, H], of distinct tokens.   weights: [U, 1].   places: int64[T], the tokens of all texts by their
        place among those.   starts: int64[B].
        """
        states = ((vectors - self.middle) @ self.matrix) * weights
        return l2_normalize(functional.embedding_bag(places, states, starts, mode="sum"))

    def of_rows(self, rows: Sequence[np.ndarray], ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The same for token rows.   ids: int64[U], distinct and sorted.   vectors: [U, H].   Returns [B, H]."""
        places = torch.searchsorted(ids, torch.from_numpy(np.concatenate(rows).astype(np.int64)))
        starts = torch.from_numpy(np.cumsum([0, *(len(row) for row in rows[:-1])]))
        return self.of_bags(vectors, self.weights[ids], places, starts)

    def beside(self, mean: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
        """What both paths give together, before it is scaled.   mean: [B, H], of the states.   static: of forward."""
        return (1 - self.share) * l2_normalize(mean) + self.share * static


def rotation_onto(vectors: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix [H, H] under which unit vectors [B, H] come closest to others, row by row.

    Turned so, they keep every cosine between them (orthogonal Procrustes, Schönemann 1966).
    """
    left, _, right = torch.linalg.svd(vectors.T @ wanted)
    return left @ right


def save_static_path(path: StaticPath, file: Path) -> None:
    """Write it as a file of tensors."""
    save_file({name: values.detach().contiguous() for name, values in path.state_dict().items()}, file)


def load_static_path(folder: Path) -> StaticPath | None:
    """Read it from a checkpoint; None where that has layers alone."""
    if not has_static_path(folder):
        return None
    tensors = load_file(folder / STATIC_FILE)
    return StaticPath(tensors["weights"], tensors["middle"], tensors["matrix"], tensors["share"])
