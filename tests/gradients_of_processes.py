"""The gradients that several processes find for one batch. Run by torchrun's variables: python … FILE NEGATIVES…"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from training.gradient_cache import batch_gradients, embed_twice
from training.objective import Keys, Objective, Vectors
from training.processes import Processes, join_processes

ROWS, INPUT, DIMENSION, CHUNK = 16, 12, 8, 3


def encoder(dropout: float = 0.0) -> torch.nn.Sequential:
    """A small model in float64, always with the same weights."""
    torch.manual_seed(5)
    layers = [torch.nn.Linear(INPUT, 24), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(24, DIMENSION)]
    return torch.nn.Sequential(*layers).double()


def texts(negatives: int) -> tuple[torch.Tensor, Keys, torch.Tensor]:
    """A batch, [B, 2 + K, INPUT], with some of its texts in it twice, and a teacher's scores."""
    generator = torch.Generator().manual_seed(negatives)
    values = torch.randn(ROWS, 2 + negatives, INPUT, generator=generator, dtype=torch.float64)
    values[9, 1] = values[2, 1]
    values[12, 0] = values[3, 0]
    keys = torch.arange(ROWS * (2 + negatives)).reshape(ROWS, -1)
    keys[9, 1], keys[12, 0] = keys[2, 1], keys[3, 0]
    if negatives:
        values[5, 2], keys[5, 2] = values[6, 1], keys[6, 1]
    teacher = torch.randn(ROWS, 1 + negatives, generator=generator, dtype=torch.float64)
    return values, Keys(keys[:, 0], keys[:, 1], keys[:, 2:]), teacher


def embed(model: torch.nn.Module, values: torch.Tensor) -> torch.Tensor:
    """[N, INPUT] to unit vectors [N, DIMENSION]."""
    return torch.nn.functional.normalize(model(values), dim=-1)


def cached_step(model: torch.nn.Module, objective: Objective, processes: Processes, negatives: int) -> float:
    """Add to the model's gradients; the batch's loss."""
    values, keys, teacher = texts(negatives)
    mine = processes.share(ROWS)
    picked = slice(mine.start, mine.stop)
    rows = values[picked].flatten(0, 1)
    own_keys = Keys(*(part[picked] for part in (keys.queries, keys.positives, keys.negatives)))
    losses = []

    def gradients_of(found: list[torch.Tensor]) -> list[torch.Tensor]:
        grouped = torch.cat(found).unflatten(0, (len(mine), 2 + negatives))
        own = Vectors(grouped[:, 0], grouped[:, 1], grouped[:, 2:])
        scores = teacher[picked] if negatives else None
        loss, wanted = batch_gradients(own, own_keys, objective, processes, scores)
        losses.append(loss)
        flat = torch.cat([wanted.queries[:, None], wanted.positives[:, None], wanted.negatives], dim=1).flatten(0, 1)
        return list(flat.split([len(part) for part in found]))

    embed_twice(rows.split(CHUNK), lambda chunk: embed(model, chunk), gradients_of)
    processes.add_up(weight.grad for weight in model.parameters() if weight.grad is not None)
    return losses[0]


def main() -> None:
    torch.set_num_threads(1)
    processes = join_processes()
    found = {}
    for negatives in map(int, sys.argv[2:]):
        for direction in ("query_to_passage", "both"):
            model = encoder()
            loss = cached_step(model, Objective(0.01, direction, alpha=0.2), processes, negatives)
            found[negatives, direction] = loss, [weight.grad for weight in model.parameters()]
    if processes.is_first:
        torch.save(found, Path(sys.argv[1]))
    processes.wait()
    processes.leave()


if __name__ == "__main__":
    main()
