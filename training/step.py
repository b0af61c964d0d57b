"""One optimiser step of a contrastive stage: learning rate, gradients from the cache, clipping, AdamW."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from training.backbone import Backbone
from training.collate import Collated
from training.config import StageConfig
from training.errors import TrainingDiverged
from training.gradient_cache import batch_gradients, embed_twice
from training.objective import Keys, Objective, Vectors
from training.permutation import key_of
from training.processes import Processes
from training.schedule import rate_at

# Not decayed: the scales and offsets of LayerNorms, and offsets in general.
NOT_DECAYED = ("bias", "LayerNorm.weight")


@dataclass(frozen=True)
class StepReport:
    """loss: of the whole batch.   gradient_norm: before clipping.   rate: learning rate.   tokens: of this process."""

    loss: float
    gradient_norm: float
    rate: float
    tokens: int


class Stepper:
    """The weights and their moments. Every process holds the same ones, and moves them alike."""

    def __init__(self, backbone: Backbone, config: StageConfig, steps: int, seed: int, processes: Processes) -> None:
        self.optimizer = torch.optim.AdamW(
            parameter_groups(backbone.model, config.weight_decay),
            lr=config.learning_rate,
            fused=processes.device.type == "cuda",
        )
        self._backbone, self._config, self._steps = backbone, config, steps
        self._seed, self._processes = seed, processes
        self._weights = [weight for weight in backbone.model.parameters() if weight.requires_grad]

    def step(
        self, number: int, batch: Collated, objective: Objective, teacher: torch.Tensor | None = None
    ) -> StepReport:
        """Move the weights by step `number`. Raises TrainingDiverged, with the weights unmoved, where that is NaN."""
        config, processes = self._config, self._processes
        # A step's dropout is a function of its number: a resumed run needs no generator's state.
        torch.manual_seed(int(key_of(self._seed, number, processes.rank)[0] >> 1))
        rate = rate_at(number, self._steps, config.warmup_steps, config.schedule, config.decay_share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * config.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        self._backbone.model.train()
        losses: list[float] = []

        def gradients_of(vectors: list[torch.Tensor]) -> list[torch.Tensor]:
            grouped = batch.grouped(vectors)
            own = Vectors(grouped[:, 0], grouped[:, 1], grouped[:, 2:])
            device = grouped.device
            keys = Keys(*(part.to(device) for part in (batch.keys.queries, batch.keys.positives, batch.keys.negatives)))
            loss, wanted = batch_gradients(own, keys, objective, processes, teacher)
            losses.append(loss)
            sides = torch.cat([wanted.queries[:, None], wanted.positives[:, None], wanted.negatives], dim=1)
            return batch.scattered(sides)

        embed_twice(batch.chunks, lambda chunk: self._backbone.embed(chunk, config.precision), gradients_of)
        processes.add_up(weight.grad for weight in self._weights if weight.grad is not None)
        norm = float(nn.utils.clip_grad_norm_(self._weights, config.gradient_norm_max))
        if not (math.isfinite(losses[0]) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"step {number}: the loss is {losses[0]}, the gradient's norm {norm}; the weights are as they were. "
                'Begin a new run with a lower learning_rate, more warmup_steps, or precision = "fp32"'
            )
        self.optimizer.step()
        return StepReport(losses[0], norm, rate * config.learning_rate, batch.tokens)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """What AdamW moves, with and without weight decay."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    decayed = [weight for name, weight in named if not name.endswith(NOT_DECAYED)]
    others = [weight for name, weight in named if name.endswith(NOT_DECAYED)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
