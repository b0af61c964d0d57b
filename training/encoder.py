"""The encoder: BERT layers over a token table of our own vocabulary, pooled and normalised by the shared recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BertConfig, BertModel

from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.tokens import pad
from training.token_vectors import directions
from training.tokenizer import PAD_ID

# Coordinates that only take up length; an even number, and enough that none of them stands far out of its row, for int8
# scales a row by its largest value.
SLACK = 4
# The length of the heaviest tokens' content, in shares of the whole.
FULLEST = 0.98


@dataclass(frozen=True)
class TokenRows:
    """The rows of the token table that one step needs, as a leaf that collects their gradient.

    ids: int64[U], distinct and sorted.   vectors: [U, H].
    """

    ids: torch.Tensor
    vectors: torch.Tensor


def weigh_by_norm(table: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Write weighted directions so that a LayerNorm does not take their weights away.

    table: [V, H - SLACK], weights: [V] in [0, 1].  Returns [V, H] with mean 0 and variance 1 in every row: the
    direction with a length in proportion to its weight, and in the last SLACK coordinates, with alternating signs,
    what is missing.
    """
    hidden = table.shape[1] + SLACK
    content = directions(table) * (weights * FULLEST * hidden**0.5)[:, None]
    missing = hidden - content.square().sum(dim=1, keepdim=True)
    signs = torch.tensor([1.0, -1.0]).repeat(SLACK // 2)
    return torch.cat([content, (missing / SLACK).sqrt() * signs], dim=1)


def build_encoder(table: torch.Tensor, weights: torch.Tensor, layers: int, heads: int, intermediate: int) -> BertModel:
    """Build a BERT that starts as the bag of tokens: mean pooling gives the sum of the weighted directions.

    table: [V, H - SLACK], weights: [V]. Every layer's two output projections start at 0, so a layer at first hands on
    what it gets; the last LayerNorm drops the slack. No dropout: with so few pairs a small encoder underfits.
    """
    hidden = table.shape[1] + SLACK
    config = BertConfig(
        vocab_size=len(table),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD_ID,
    )
    bert = BertModel(config, add_pooling_layer=False)
    embeddings = bert.embeddings
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(weigh_by_norm(table, weights))
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
        for layer in bert.encoder.layer:
            for projection in (layer.attention.output.dense, layer.output.dense):
                projection.weight.zero_()
                projection.bias.zero_()
        bert.encoder.layer[-1].output.LayerNorm.weight[-SLACK:] = 0.0
    # The table is moved row by row, see row_adam. Positions stay 0: a bag has none, and what is not trained on long
    # texts cannot go wrong there.
    for frozen in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
        frozen.weight.requires_grad_(False)
    return bert


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


def embed_rows(bert: BertModel, rows: Sequence[np.ndarray], table: TokenRows, chunk_tokens: int) -> torch.Tensor:
    """Embed token rows (special tokens included) in groups of like length. Returns unit vectors [B, H]."""
    chunks = chunk_by_length(np.array([len(row) for row in rows]), chunk_tokens)
    vectors = []
    for chunk in chunks:
        batch = pad([rows[place] for place in chunk], PAD_ID)
        mask = torch.from_numpy(batch.mask)
        places = torch.searchsorted(table.ids, torch.from_numpy(batch.ids))
        embedded = torch.nn.functional.embedding(places, table.vectors)
        states = bert(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        vectors.append(l2_normalize(mean_pool(states, mask.to(states.dtype))))
    order = torch.from_numpy(np.argsort(np.concatenate(chunks)))
    return torch.cat(vectors)[order]
