"""Mean pooling and L2 normalisation, written with operators only.

The same lines run on NumPy in the gateway, on torch in training, and in the exported graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", NDArray[np.float32], "torch.Tensor")


def mean_pool(states: Array, mask: Array) -> Array:
    """Average the token states of each row, padding excluded.

    states: [B, T, H] float32.   mask: [B, T], 1 = token, 0 = padding, in the dtype of states: an int64 mask would
    make NumPy pool in float64.
    Returns [B, H]. A row without tokens gives zeros. Padded states must be finite (0 * inf is NaN).
    """
    # A product and a sum, not a matrix product: under autocast the latter falls to bfloat16.
    total: Array = (states * mask[:, :, None]).sum(1)
    count: Array = mask.sum(1)[:, None].clip(1)
    return total / count


def l2_normalize(vectors: Array) -> Array:
    """Scale each row of [B, H] to length one; a row of zeros stays zeros.

    The square is clipped before the root, for the gradient of a root at exact zero is NaN.
    """
    squares: Array = (vectors * vectors).sum(-1)[:, None].clip(1e-24)
    return vectors / squares**0.5
