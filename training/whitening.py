"""Even out the directions of the token vectors: a few of them carry most of what all texts have in common.

A linear map of a bag is the same map of its tokens, so the whole correction goes into the token vectors.
"""

import numpy as np
import torch

from training.data import Corpus
from training.token_vectors import Bags, directions

# Texts of fewer tokens say too little about the directions of a language.
MIN_TOKENS = 8
MIN_TEXTS = 150
# Directions without variance, such as the one that `directions` takes off, are not blown up.
MIN_VARIANCE_SHARE = 1e-3
HEAVIEST_QUANTILE = 0.998


def sample_by_language(corpus: Corpus, lengths: np.ndarray, texts_per_language: int, seed: int) -> np.ndarray:
    """Draw as many texts of every language, so that English does not decide alone what is common.

    lengths: int[T], tokens of every text.  Returns text numbers; all of MIN_TOKENS and more where no language has
    enough.
    """
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(lengths >= MIN_TOKENS)
    languages = corpus.text_language[usable]
    groups = [usable[languages == language] for language in range(len(corpus.languages))]
    chosen = [
        rng.choice(group, min(texts_per_language, len(group)), replace=False)
        for group in groups
        if len(group) >= MIN_TEXTS
    ]
    return np.concatenate(chosen) if chosen else usable


def whitening_map(vectors: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the map that evens out the variances of some vectors [N, H]: [H, H], symmetric.

    strength: 0 changes nothing, 1 gives every direction the same variance.
    """
    variances, axes = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    shares = (variances / variances.mean()).clamp(min=MIN_VARIANCE_SHARE)
    return axes @ torch.diag(shares ** (-strength / 2)) @ axes.T


def whiten_tokens(
    table: torch.Tensor, weights: torch.Tensor, bags: Bags, sample: np.ndarray, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the whitening of the bags of some texts to the tokens.

    table: [V, H].  weights: [V], as learnt; those of `bags` are not read.  sample: int[N], text numbers.
    Returns directions [V, H] and weights [V], at most 1.
    """
    learnt = Bags(bags.store, weights, bags.max_tokens)
    tokens = learnt.tokens(sample)
    content = directions(table) * weights[:, None]
    content = content @ whitening_map(learnt.pool(table[tokens[0]], tokens), strength)
    lengths = content.norm(dim=1)
    # A handful of very heavy tokens would press all others to small numbers, which int8 would then round coarsely.
    return content, (lengths / lengths.quantile(HEAVIEST_QUANTILE)).clamp(max=1.0)
