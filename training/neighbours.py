"""Exact nearest neighbours, piece by piece: neither all scores nor all passages need fit into memory."""

import numpy as np
import torch
from numpy.typing import NDArray

# Scores of 256 MiB at a time; a GPU takes more queries, for each block of them all passages are carried to it.
QUERY_ROWS, PASSAGE_ROWS = (8192 if torch.cuda.is_available() else 1024), 65_536


def top_k(
    queries: NDArray[np.float32],
    passages: NDArray[np.float32],
    k: int,
    *,
    query_rows: int = QUERY_ROWS,
    passage_rows: int = PASSAGE_ROWS,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k passages with the largest inner products for each query, best first.

    queries: [N, H], passages: [P, H], each in memory or mapped from a file; pieces of passage_rows are read one after
    another. Returns scores float32[N, k] and passage numbers int64[N, k], k at most P.
    """
    k = min(k, len(passages))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores = np.empty((len(queries), k), dtype=np.float32)
    numbers = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), query_rows):
        block = torch.from_numpy(np.asarray(queries[start : start + query_rows])).to(device)
        best = torch.empty(len(block), 0, device=device)
        places = torch.empty(len(block), 0, dtype=torch.int64, device=device)
        for first in range(0, len(passages), passage_rows):
            piece = torch.from_numpy(np.asarray(passages[first : first + passage_rows])).to(device)
            found, where = torch.topk(block @ piece.T, min(k, len(piece)), dim=1)
            best, places = torch.cat([best, found], dim=1), torch.cat([places, where + first], dim=1)
            best, order = torch.topk(best, min(k, best.shape[1]), dim=1)
            places = places.gather(1, order)
        scores[start : start + len(block)] = best.cpu().numpy()
        numbers[start : start + len(block)] = places.cpu().numpy()
    return scores, numbers
