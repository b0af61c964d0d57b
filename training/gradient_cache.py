"""One step on a batch of any size, in the memory of one chunk: gradient caching (Gao et al., arXiv 2101.06983).

The batch is embedded in chunks without graphs; the loss is taken over all vectors, of every process, and gives each
vector its gradient; then each chunk is embedded again, with a graph and the same dropout, and takes its part of that
gradient down to the weights. What the weights get is what one process with one graph would give them.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from training.objective import Keys, Objective, Vectors
from training.processes import Processes

Chunk = TypeVar("Chunk")

# Rows of the score matrix at a time: 1024 × 32,768 scores in float32 are 128 MiB.
SCORED_ROWS = 1024


def embed_twice(
    chunks: Sequence[Chunk],
    embed: Callable[[Chunk], torch.Tensor],
    gradients_of: Callable[[list[torch.Tensor]], list[torch.Tensor]],
) -> None:
    """Add to the weights' gradients what the loss over the vectors of all chunks asks for.

    embed: vectors [N, H] of a chunk.   gradients_of: from the vectors of every chunk to their gradients.
    """
    states, vectors = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            vectors.append(embed(chunk))
    gradients = gradients_of(vectors)
    for chunk, state, gradient in zip(chunks, states, gradients, strict=True):
        _restore_random_state(state)
        found = embed(chunk)
        # Read by autograd as d(loss)/d(found) = gradient.
        torch.autograd.backward(found, gradient.to(found.dtype))


def batch_gradients(
    own: Vectors, keys: Keys, objective: Objective, processes: Processes, teacher: torch.Tensor | None = None
) -> tuple[float, Vectors]:
    """The loss of the whole batch, and what it asks of this process's vectors.

    own, keys, teacher: of this process's rows, as many in each process. Returns the batch's loss, the same everywhere,
    and gradients in the shapes of `own`.
    """
    whole = Vectors(
        *(
            processes.gather(part.float() if part.dtype.itemsize < 4 else part).requires_grad_(True)
            for part in parts(own)
        )
    )
    all_keys = Keys(*(processes.gather(part) for part in (keys.queries, keys.positives, keys.negatives)))
    scores = None if teacher is None else processes.gather(teacher)
    mine = processes.share(len(whole.queries))
    loss = torch.zeros((), dtype=whole.queries.dtype, device=whole.queries.device)
    for start in range(mine.start, mine.stop, SCORED_ROWS):
        piece = objective.add_up(whole, all_keys, range(start, min(start + SCORED_ROWS, mine.stop)), scores)
        piece.backward()
        loss += piece.detach()
    gradients = [part.grad if part.grad is not None else torch.zeros_like(part) for part in parts(whole)]
    # Every process's queries pull at every process's passages.
    processes.add_up([loss, *gradients])
    picked = slice(mine.start, mine.stop)
    return float(loss), Vectors(*(gradient[picked] for gradient in gradients))


def parts(vectors: Vectors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, positives, negatives."""
    return vectors.queries, vectors.positives, vectors.negatives


def _random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _restore_random_state(state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state[1:])
