"""One optimiser step of the teacher: each query's positive against its own negatives, the hardest of many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from training.config import TeachConfig
from training.cross_encoder import CrossEncoder, PairTokens
from training.encoder import chunk_by_length
from training.errors import TrainingDiverged
from training.permutation import key_of
from training.processes import Processes
from training.schedule import rate_at
from training.step import StepReport, parameter_groups

Group = Sequence[PairTokens]


@dataclass(frozen=True)
class TeachBatch:
    """groups: of each of this process's queries, its pair with the positive and then with each negative.

    All have as many.   source: whose queries they are.
    """

    groups: list[Group]
    source: str


class TeachStepper:
    """The teacher's weights and their moments, the same in every process."""

    def __init__(self, encoder: CrossEncoder, config: TeachConfig, steps: int, seed: int, processes: Processes) -> None:
        self.optimizer = torch.optim.AdamW(
            parameter_groups(encoder.model, config.weight_decay),
            lr=config.learning_rate,
            fused=processes.device.type == "cuda",
        )
        self._encoder, self._config, self._steps = encoder, config, steps
        self._seed, self._processes = seed, processes
        self._weights = [weight for weight in encoder.model.parameters() if weight.requires_grad]

    def step(self, number: int, batch: TeachBatch) -> StepReport:
        """Move the weights by step `number`. Raises TrainingDiverged, with the weights unmoved, where that is NaN."""
        config, processes = self._config, self._processes
        groups = hardest_of(batch.groups, self._encoder, config)
        # A step's dropout is a function of its number: a resumed run needs no generator's state.
        torch.manual_seed(int(key_of(self._seed, number, processes.rank)[0] >> 1))
        rate = rate_at(number, self._steps, config.warmup_steps)
        for entry in self.optimizer.param_groups:
            entry["lr"] = rate * config.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        self._encoder.model.train()
        loss = torch.zeros((), device=processes.device)
        for chunk in chunks_of(groups, config.chunk_tokens):
            rows = [row for place in chunk for row in groups[place]]
            readings = [
                self._encoder.logits(rows, config.precision).unflatten(0, (len(chunk), -1))
                for _ in range(2 if config.r_drop else 1)
            ]
            part = ranking_loss(readings, config.r_drop) / config.batch_queries
            part.backward()
            loss += part.detach()
        processes.add_up([loss, *(weight.grad for weight in self._weights if weight.grad is not None)])
        norm = float(nn.utils.clip_grad_norm_(self._weights, config.gradient_norm_max))
        if not (math.isfinite(float(loss)) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"step {number}: the loss is {float(loss)}, the gradient's norm {norm}; the weights are as they were. "
                'Begin a new run with a lower learning_rate, more warmup_steps, or precision = "fp32"'
            )
        self.optimizer.step()
        tokens = sum(len(row.ids) for group in batch.groups for row in group)
        return StepReport(float(loss), norm, rate * config.learning_rate, tokens)


def ranking_loss(readings: Sequence[torch.Tensor], r_drop: float) -> torch.Tensor:
    """Cross-entropy of the positive among each query's passages, and how far two readings of them are apart.

    readings: [G, 1 + K] logits, the positive's first, once or twice with other dropout. Returns the sum over the
    queries. Of two readings: the mean of their cross-entropies, and r_drop times the mean of both divergences.
    """
    odds = [functional.log_softmax(reading, dim=1) for reading in readings]
    loss = -torch.stack([part[:, 0] for part in odds]).mean(dim=0).sum()
    if len(odds) == 2:
        first, second = odds
        apart = (first.exp() - second.exp()) * (first - second)
        loss = loss + r_drop * apart.sum() / 2
    return loss


def hardest_of(groups: Sequence[Group], encoder: CrossEncoder, config: TeachConfig) -> list[Group]:
    """Of each group its positive and the negatives that the model scores highest, one in forward_factor of all."""
    size = len(groups[0])
    kept = max(2, size // config.forward_factor)
    if kept >= size:
        return list(groups)
    encoder.model.eval()
    chosen: list[Group] = [()] * len(groups)
    with torch.no_grad():
        for chunk in chunks_of(groups, config.chunk_tokens):
            rows = [row for place in chunk for row in groups[place]]
            scores = encoder.logits(rows, config.precision).unflatten(0, (len(chunk), size))[:, 1:]
            order = scores.argsort(dim=1, descending=True, stable=True)[:, : kept - 1].tolist()
            for place, best in zip(chunk.tolist(), order, strict=True):
                chosen[place] = [groups[place][0], *(groups[place][1 + number] for number in best)]
    return chosen


def chunks_of(groups: Sequence[Group], chunk_tokens: int) -> list[np.ndarray]:
    """Places of groups that are read together: of like length, up to chunk_tokens with padding."""
    widths = np.array([max(len(row.ids) for row in group) * len(group) for group in groups])
    return chunk_by_length(widths, chunk_tokens)
