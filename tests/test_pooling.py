"""Mean pooling and L2 on NumPy and torch alike."""

from __future__ import annotations

import numpy as np
import torch

from service.recipe.pooling import l2_normalize, mean_pool

RNG = np.random.default_rng(0)
STATES = RNG.standard_normal((3, 5, 8), dtype=np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)


def test_numpy_and_torch_give_the_same_numbers() -> None:
    ours = l2_normalize(mean_pool(STATES, MASK))
    theirs = l2_normalize(mean_pool(torch.from_numpy(STATES), torch.from_numpy(MASK)))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-7)


def test_padding_does_not_count() -> None:
    other = STATES.copy()
    other[1, 2:] = 1e6
    np.testing.assert_allclose(mean_pool(other, MASK)[1], STATES[1, :2].mean(axis=0), rtol=1e-6)


def test_pooling_stays_in_float32() -> None:
    assert mean_pool(STATES, MASK).dtype == np.float32
    assert l2_normalize(mean_pool(STATES, MASK)).dtype == np.float32


def test_a_row_without_tokens_gives_zeros_and_stays_zeros() -> None:
    pooled = mean_pool(STATES, MASK)
    assert not pooled[2].any()
    assert not l2_normalize(pooled)[2].any()


def test_rows_have_length_one() -> None:
    lengths = np.linalg.norm(l2_normalize(STATES[0] * 1e3), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_the_gradient_at_a_zero_vector_is_finite() -> None:
    vectors = torch.zeros(1, 4, requires_grad=True)
    l2_normalize(vectors).sum().backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_pooling_stays_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = mean_pool(torch.from_numpy(STATES), torch.from_numpy(MASK))
    np.testing.assert_allclose(pooled.numpy(), mean_pool(STATES, MASK), atol=1e-6)
