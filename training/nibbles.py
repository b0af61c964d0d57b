"""Token vectors in four bits: 32 neighbours share a float16 scale, each is one of fifteen multiples of it.

A table that was trained as it will be stored loses nothing by it: what is rounded already is not changed by rounding.
"""

import numpy as np
import torch
from numpy.typing import NDArray

LARGEST = 7
GROUP = 32
# Of a group's largest value: a table this near to its rounded self was trained so.
EXACT = 1e-5
# Enough to tell any other table by, before all of a large one is rounded.
PROBED_ROWS = 1000


def rounded(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors [N, H] as they are stored; H a multiple of 32."""
    groups = vectors.unflatten(-1, (-1, GROUP))
    scales = _scales(groups.abs().amax(dim=-1, keepdim=True))
    return (torch.round(groups / scales).clamp(-LARGEST, LARGEST) * scales).flatten(-2)


def _scales(largest: torch.Tensor) -> torch.Tensor:
    # The smallest that a half tells from 0 stands for groups of zeros.
    return (largest / LARGEST).half().clamp(min=2.0**-24).float()


def packed(table: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]] | None:
    """A table [V, H] that is rounded already, two values a byte; None for any other.

    Returns uint8[V, H / 2], column j in the lower half of byte j, column j + H / 2 in the upper one, each 8 more than
    its multiple; and the scales float16[V, H / 32, 1].
    """
    rows, width = table.shape
    if width % GROUP or not (_is_rounded(table[:PROBED_ROWS]) and _is_rounded(table)):
        return None
    groups = table.reshape(rows, -1, GROUP)
    scales = _scales(torch.from_numpy(np.abs(groups).max(axis=-1, keepdims=True))).numpy()
    steps = (np.rint(groups / scales) + LARGEST + 1).astype(np.uint8).reshape(rows, width)
    return steps[:, : width // 2] | steps[:, width // 2 :] << 4, scales.astype(np.float16)


def _is_rounded(table: NDArray[np.float32]) -> bool:
    lost = np.abs(rounded(torch.from_numpy(table.copy())).numpy() - table).reshape(-1, GROUP)
    return bool((lost.max(axis=1) <= EXACT * np.abs(table).reshape(-1, GROUP).max(axis=1)).all())


def unpacked(pairs: NDArray[np.uint8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """What `packed` was given."""
    steps = np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.float32) - (LARGEST + 1)
    table: NDArray[np.float32] = steps.reshape(len(pairs), -1, GROUP) * scales.astype(np.float32)
    return table.reshape(len(pairs), -1)
