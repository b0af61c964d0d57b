"""Token vectors that fill fewer dimensions than they have: a version stores each as so many numbers, and one matrix.

Of a small multilingual model the token table is the most. At equal size of the file, more tokens whose vectors lie in a
subspace are worth more than fewer that may lie anywhere (docs/nano-ablation.md).
"""

import numpy as np
import torch
from numpy.typing import NDArray

# A direction with less than this of the largest one's length is what float32 has rounded.
LENGTH_MIN = 1e-4
BLOCK_ROWS = 10_000


def main_directions(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """The orthonormal directions that a table fills, the fullest first. [V, H] to [E, H], E ≤ H."""
    products = np.zeros((table.shape[1], table.shape[1]))
    # In pieces: a large table in float64 would take twice its memory again.
    for first in range(0, len(table), BLOCK_ROWS):
        block = table[first : first + BLOCK_ROWS].astype(np.float64)
        products += block.T @ block
    squares, directions = np.linalg.eigh(products)
    filled = squares > squares[-1] * LENGTH_MIN**2
    return np.ascontiguousarray(directions[:, filled].T[::-1], dtype=np.float32)


def onto_subspace(table: torch.Tensor, width: int) -> torch.Tensor:
    """The projection [H, H] onto the `width` directions that a table [V, H] fills most."""
    kept = torch.from_numpy(main_directions(table.numpy())[:width])
    return kept.T @ kept
