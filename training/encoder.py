"""The encoder: BERT layers over a token table of our own vocabulary, pooled and normalised by the shared recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.tokens import pad
from training.tokenizer import PAD_ID


@dataclass(frozen=True)
class TokenRows:
    """The rows of the token table that one step needs, as a leaf that collects their gradient.

    ids: int64[U], distinct and sorted.   vectors: [U, H].
    """

    ids: torch.Tensor
    vectors: torch.Tensor


def distinct_ids(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """List the token ids that occur in some rows, padding included, int64[U], sorted."""
    return torch.from_numpy(np.unique(np.concatenate([*rows, np.array([PAD_ID])])).astype(np.int64))


def chunk_by_length(lengths: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """Group rows of like length so that no group has more than chunk_tokens tokens with padding.

    lengths: int[B].  Returns places into the batch; every row is in exactly one group, one long row may exceed alone.
    """
    chunks: list[list[int]] = []
    for place in np.argsort(lengths, kind="stable").tolist():
        # Lengths rise, so the newest row is the widest of its group.
        if chunks and lengths[place] * (len(chunks[-1]) + 1) <= chunk_tokens:
            chunks[-1].append(place)
        else:
            chunks.append([place])
    return [np.array(chunk, dtype=np.int64) for chunk in chunks]


def embed_rows(bert: torch.nn.Module, rows: Sequence[np.ndarray], table: TokenRows, chunk_tokens: int) -> torch.Tensor:
    """Embed token rows (special tokens included) in groups of like length. Returns unit vectors [B, H].

    bert: a BertModel, or what computes the same.
    """
    chunks = chunk_by_length(np.array([len(row) for row in rows]), chunk_tokens)
    vectors = []
    for chunk in chunks:
        batch = pad([rows[place] for place in chunk], PAD_ID)
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        embedded = torch.nn.functional.embedding(torch.searchsorted(table.ids, ids), table.vectors)
        states = bert(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        vectors.append(l2_normalize(mean_pool(states, mask.to(states.dtype))))
    order = torch.from_numpy(np.argsort(np.concatenate(chunks)))
    return torch.cat(vectors)[order]
