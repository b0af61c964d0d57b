"""Learn the token vectors before the layers, with every text as a bag of its tokens.

A bag is the sum of its tokens' directions, each with a weight that starts at its rarity. It costs no matrix product, so
millions of pairs pass in minutes: enough for a vocabulary of many languages, which the encoder itself is too slow to
teach. Each token starts where the English teacher puts its string, and an anchor holds English texts, and with them
their translations, near the bag of these first vectors.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from service.recipe.pooling import l2_normalize
from training.batches import batch_pairs_of
from training.bootstrap_config import TokenVectorsConfig
from training.data import Corpus
from training.loss import cosine_distance, info_nce_both_ways
from training.mixture import Mixture, draw_batch
from training.row_adam import RowAdam
from training.token_store import TokenStore, take_bags
from training.tokenizer import SPECIAL_TOKENS

logger = logging.getLogger(__name__)
LOG_EVERY_STEPS = 50
NO_TARGET = -1


def rarity_weights(store: TokenStore, prefix_ids: list[np.ndarray], vocab_size: int, smoothing: float) -> torch.Tensor:
    """Weigh every token by a / (a + its share of all tokens), so that frequent tokens count little.

    Smooth inverse frequency, Arora et al. 2017. The texts carry no prefix yet, so each prefix is counted in for its
    part of the texts; the special tokens, which say nothing, get 0. Returns float32[V].
    """
    counts = np.bincount(store.ids, minlength=vocab_size).astype(np.float64)
    texts = len(store.starts) - 1
    for prefix in prefix_ids:
        counts[prefix] += texts / len(prefix_ids)
    weights = smoothing / (smoothing + counts / max(counts.sum(), 1))
    weights[: len(SPECIAL_TOKENS)] = 0.0
    return torch.from_numpy(weights.astype(np.float32))


def directions(vectors: torch.Tensor) -> torch.Tensor:
    """Give every token vector [U, H] mean 0 and length 1: what the encoder's LayerNorms leave of it."""
    return l2_normalize(vectors - vectors.mean(dim=1, keepdim=True))


def find_targets(corpus: Corpus) -> np.ndarray:
    """Name for both sides of every pair the English text that shows where it belongs.

    Returns int32[N, 2] text numbers. An English side is its own target; a side in another language takes the English
    side, when the pair is a translation; NO_TARGET otherwise.
    """
    english = corpus.languages.index("en") if "en" in corpus.languages else NO_TARGET
    is_english = corpus.text_language[corpus.pairs] == english
    targets = np.where(is_english, corpus.pairs, NO_TARGET)
    is_translation_source = np.array([name.startswith("translation_") for name in corpus.sources])
    is_translation = is_translation_source[corpus.pair_source]
    for side in (0, 1):
        other = 1 - side
        from_other = is_translation & ~is_english[:, side] & is_english[:, other]
        targets[from_other, side] = corpus.pairs[from_other, other]
    return targets


class Bags:
    """Bags of one vocabulary: text numbers in, vectors out."""

    def __init__(self, store: TokenStore, weights: torch.Tensor, max_tokens: int) -> None:
        self.store = store
        self.weights = weights
        self.max_tokens = max_tokens

    def tokens(self, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the distinct token ids of some texts, each token's place among them, and the bag starts."""
        ids, starts = take_bags(self.store, numbers, self.max_tokens)
        distinct, places = torch.unique(torch.from_numpy(ids), return_inverse=True)
        return distinct, places, torch.from_numpy(starts)

    def pool(
        self,
        rows: torch.Tensor,
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        log_gain: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum up the token vectors `rows` [U, H] of tokens() in their bags, each token's weight times exp(log_gain).

        log_gain: [U, 1] or None.  Returns unit vectors [B, H].
        """
        distinct, places, starts = tokens
        weights = self.weights[distinct][:, None]
        states = directions(rows) * (weights if log_gain is None else weights * log_gain.exp())
        return l2_normalize(functional.embedding_bag(places, states, starts, mode="sum"))


def learn_token_vectors(
    table: torch.Tensor,
    bags: Bags,
    corpus: Corpus,
    mixture: Mixture,
    config: TokenVectorsConfig,
    seed: int,
    should_stop: Callable[[], bool],
) -> torch.Tensor | None:
    """Move the token vectors [V, H], in place, until the bags of a pair meet.

    Returns the weights [V] that the tokens have learnt, the largest 1; None when it was stopped.
    """
    targets = find_targets(corpus)
    anchor = table.clone()
    log_gain = torch.zeros(len(table), 1)
    vector_optimizer, gain_optimizer = RowAdam(table), RowAdam(log_gain)
    lengths = np.minimum(bags.store.lengths(), config.max_tokens)
    batch_pairs = batch_pairs_of(corpus, lengths, config.tokens_per_batch, config.batch_pairs_max)
    for step in range(config.steps):
        rows = draw_batch(corpus, mixture, batch_pairs, seed, step)
        tokens = bags.tokens(corpus.pairs[rows].T.reshape(-1))
        vectors, gains = vector_optimizer.gather(tokens[0]), gain_optimizer.gather(tokens[0])
        student = bags.pool(vectors, tokens, gains)
        left, right = student.chunk(2)
        loss = info_nce_both_ways(left, right, config.temperature)
        wanted = targets[rows].T.reshape(-1)
        anchored = np.flatnonzero(wanted != NO_TARGET)
        if len(anchored):
            with torch.no_grad():
                goal_tokens = bags.tokens(wanted[anchored])
                goal = bags.pool(anchor[goal_tokens[0]], goal_tokens)
            loss = loss + config.anchor_weight * cosine_distance(student[torch.from_numpy(anchored)], goal)
        loss.backward()
        assert vectors.grad is not None
        assert gains.grad is not None
        falling = 1 - step / config.steps
        vector_optimizer.step(tokens[0], vectors.grad, config.learning_rate * falling)
        gain_optimizer.step(tokens[0], gains.grad, config.gain_learning_rate * falling)
        if step % LOG_EVERY_STEPS == 0:
            source = corpus.sources[corpus.pair_source[rows[0]]]
            logger.info("token vectors: step %d, %s, %d pairs, loss %.4f", step, source, len(rows), loss.item())
        if should_stop():
            logger.warning("stopped during the warm start, which has to begin anew with --resume")
            return None
    weights = bags.weights * log_gain[:, 0].exp()
    return weights / weights.max()
