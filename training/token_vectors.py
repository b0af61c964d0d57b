"""Move the token vectors before the layers are trained, with every text as a bag of its tokens.

A bag is what the static path makes of a text (static_path.py); translations are to have like bags. It costs no layer,
so a million pairs pass in minutes, where the layers need hours: time enough to learn what the tokens of a hundred
languages mean. English tokens hardly move, for the layers know them as they are, and the others move to them. More
rounds than two or three over the pairs teach these by heart, and pairs not trained on get worse.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from training.batches import batch_pairs_of
from training.bootstrap_config import TokenVectorsConfig
from training.data import Corpus
from training.loss import info_nce_both_ways
from training.mixture import Mixture, draw_batch
from training.row_adam import RowAdam
from training.static_path import StaticPath
from training.token_store import TokenStore, take_bags
from training.tokenizer import SPECIAL_TOKENS

logger = logging.getLogger(__name__)
LOG_EVERY_STEPS = 50


def token_shares(store: TokenStore, prefix_ids: list[NDArray[np.int32]], vocab_size: int) -> torch.Tensor:
    """The share of every token among all that the encoder will read, float32[V].

    The texts carry no prefix yet, so each prefix is counted in for its part of the texts.
    """
    counts = np.bincount(store.ids, minlength=vocab_size).astype(np.float64)
    texts = len(store.starts) - 1
    for prefix in prefix_ids:
        counts[prefix] += texts / len(prefix_ids)
    return torch.from_numpy((counts / max(counts.sum(), 1)).astype(np.float32))


def rarity_weights(shares: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Weigh every token by a / (a + its share), so that frequent tokens count little; special tokens say nothing.

    Smooth inverse frequency, Arora et al. 2017. Returns float32[V, 1].
    """
    weights = (smoothing / (smoothing + shares))[:, None]
    weights[: len(SPECIAL_TOKENS)] = 0.0
    return weights


def begin_static_path(table: torch.Tensor, shares: torch.Tensor, smoothing: float, share: float) -> StaticPath:
    """The static path before anything is learnt: the mean of the token vectors [V, H], rare ones counting most.

    shares: float32[V], see token_shares.   share: of the static path in the whole vector.
    """
    # The mean over all tokens met says nothing of any text.
    middle = (shares[:, None] * table).sum(dim=0)
    matrix = torch.eye(table.shape[1])
    return StaticPath(rarity_weights(shares, smoothing), middle, matrix, torch.tensor(share))


def learn_token_vectors(
    table: torch.Tensor,
    static: StaticPath,
    english: NDArray[np.float64],
    store: TokenStore,
    corpus: Corpus,
    mixture: Mixture,
    config: TokenVectorsConfig,
    seed: int,
    should_stop: Callable[[], bool],
    projection: torch.Tensor | None = None,
) -> bool:
    """Move the token vectors [V, H] and the static path, in place, until the bags of a pair meet.

    english: float64[V], how English each token is.   projection: as RowAdam's.   Returns False when it was stopped.
    """
    mobility = torch.from_numpy(1 - english).clamp(min=config.mobility_min).float()[:, None]
    log_gain = torch.zeros(len(table), 1)
    vector_optimizer, gain_optimizer = RowAdam(table, projection=projection), RowAdam(log_gain)
    matrix_optimizer = torch.optim.Adam([static.matrix])
    lengths = np.minimum(store.lengths(), config.max_tokens)
    batch_pairs = batch_pairs_of(corpus, lengths, config.tokens_per_batch, config.batch_pairs_max)
    losses: list[float] = []
    for step in range(config.steps):
        if should_stop():
            logger.warning("stopped during the token vectors, which have to begin anew with --resume")
            return False
        rows = draw_batch(corpus, mixture, batch_pairs, seed, step)
        tokens, starts = take_bags(store, corpus.pairs[rows].T.reshape(-1), config.max_tokens)
        ids, places = torch.unique(torch.from_numpy(tokens), return_inverse=True)
        vectors, gains = vector_optimizer.gather(ids), gain_optimizer.gather(ids)
        weights = static.weights[ids] * gains.exp()
        left, right = static.of_bags(vectors, weights, places, torch.from_numpy(starts)).chunk(2)
        loss = info_nce_both_ways(left, right, config.temperature)
        loss.backward()
        assert vectors.grad is not None
        assert gains.grad is not None
        falling = 1 - step / config.steps
        before = table[ids]
        vector_optimizer.step(ids, vectors.grad, config.learning_rate * falling)
        table[ids] = before + (table[ids] - before) * mobility[ids]
        gain_optimizer.step(ids, gains.grad, config.gain_learning_rate * falling)
        for group in matrix_optimizer.param_groups:
            group["lr"] = config.matrix_learning_rate * falling
        matrix_optimizer.step()
        matrix_optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % LOG_EVERY_STEPS == 0:
            logger.info("token vectors: step %d, loss %.4f", step + 1, float(np.mean(losses[-LOG_EVERY_STEPS:])))
    static.weights *= log_gain.exp()
    return True
