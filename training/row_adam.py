"""Adam for the rows of a token table that a step has touched."""

from collections.abc import Callable

import torch


class RowAdam:
    """Adam over a [V, H] table, with moments kept and moved only for the rows in the batch.

    Dense Adam reads and writes the whole table and both moments each step; a batch touches a few thousand of the rows.
    A row's bias correction counts its own updates, so a rare token's first update is as large as a frequent one's.
    """

    def __init__(
        self,
        table: torch.Tensor,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        projection: torch.Tensor | None = None,
        rounding: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """projection: [H, H], onto the subspace that rows are moved within (narrow.py).

        rounding: what rows are read as, where that is not what they are (nibbles.py); gradients pass it unchanged.
        """
        self.table = table
        self.projection, self.rounding = projection, rounding
        self.betas = betas
        self.eps = eps
        self.mean = torch.zeros_like(table)
        # One second moment per row: within a row the coordinates are alike, and it keeps the gradient's direction.
        self.square = torch.zeros(table.shape[0], 1)
        self.updates = torch.zeros(table.shape[0], 1)

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of distinct ids as a leaf that collects a gradient. ids: int64[U] -> [U, H]."""
        rows = self.table[ids].detach()
        return (rows if self.rounding is None else self.rounding(rows)).requires_grad_(True)

    def step(self, ids: torch.Tensor, gradient: torch.Tensor, learning_rate: float) -> None:
        """Move the rows of distinct ids. ids: int64[U], gradient: [U, H]."""
        if self.projection is not None:
            gradient = gradient @ self.projection
        beta_mean, beta_square = self.betas
        updates = self.updates[ids] + 1
        mean = self.mean[ids].mul_(beta_mean).add_(gradient, alpha=1 - beta_mean)
        row_square = gradient.square().mean(dim=1, keepdim=True)
        square = self.square[ids].mul_(beta_square).add_(row_square, alpha=1 - beta_square)
        self.updates[ids], self.mean[ids], self.square[ids] = updates, mean, square
        corrected_mean = mean / (1 - beta_mean**updates)
        corrected_square = square / (1 - beta_square**updates)
        self.table[ids] -= learning_rate * corrected_mean / (corrected_square.sqrt() + self.eps)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what an exact resume needs; the table itself is saved with the model."""
        return {"mean": self.mean, "square": self.square, "updates": self.updates}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what state_dict gave."""
        self.mean, self.square, self.updates = state["mean"], state["square"], state["updates"]
