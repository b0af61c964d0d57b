"""The third path of a small encoder: which tokens a text holds, in numbers of their own behind the meaning.

A small model has no meaning for a rare name, and its vectors forget that the question and the passage share one; word
counts (BM25) find such a passage at once. So every token has a code of +1 and -1, drawn once and never trained, and a
text the sum of its tokens' codes, rare tokens counting most: two texts' sums have the cosine of their weighted word
counts, with an error of 1 / √W (random projection, Achlioptas 2003). Nothing of this costs a parameter.

    code    = low[id mod 512] * high[id div 512]        products of independent signs are signs, pairwise independent
    lexical = unit(Σ weight · code)                     weight: log(1 + texts / (texts with the token + ½))
    vector  = unit([unit(meaning), scale · lexical])   scale: of the role, told by the prompt's first token

Between two texts in the role of a query, a sentence and its translation or its contradiction, words say little; between
a question and a passage they say much. So a passage has another scale: what counts is the product of both sides'.

The meaning comes first: who cuts the vector behind it (`dimensions` of the gateway) has it alone.
"""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional

from service.recipe.pooling import l2_normalize
from training.sentence_folder import LEXICAL_FILE
from training.token_store import TokenStore
from training.tokenizer import SPECIAL_TOKENS

logger = logging.getLogger(__name__)
# A power of two: the quotient of an id is exact in float32.
LOW_ROWS = 512


class LexicalPath(torch.nn.Module):
    """weights: float32[V, 1], 0 for special tokens.   low: int8[512, W].   high: int8[⌈V / 512⌉, W], both of +1 and -1.

    scales: [2, 1], the length of the lexical part of a query and of a passage, where that of the meaning is 1.
    passage_id: int64[1, 1], the first token of the passage's prompt.
    """

    weights: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    scales: torch.Tensor
    passage_id: torch.Tensor

    def __init__(
        self,
        weights: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        scales: torch.Tensor,
        passage_id: torch.Tensor,
    ) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("scales", scales)
        self.register_buffer("passage_id", passage_id)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids, mask: int64[B, T], padded on the right.

        Returns float32[B, W], as long as the role wants; zeros where nothing weighs.
        """
        # By floats: not every engine divides whole numbers.
        quotient = torch.floor(ids.float() / LOW_ROWS).long()
        low, high = functional.embedding(ids - quotient * LOW_ROWS, self.low), functional.embedding(quotient, self.high)
        codes = low.float() * high.float()
        weights = functional.embedding(ids, self.weights) * mask.to(codes.dtype)[:, :, None]
        # Behind the token that begins every text; the sum is for a text that has nothing else.
        is_passage = (ids[:, 1:2] == self.passage_id).long().sum(1)
        return l2_normalize((codes * weights).sum(1)) * functional.embedding(is_passage, self.scales)

    @staticmethod
    def behind(meaning: torch.Tensor, lexical: torch.Tensor) -> torch.Tensor:
        """Both side by side, [B, H + W], before they are scaled.   meaning: [B, H].   lexical: of forward."""
        return torch.cat([l2_normalize(meaning), lexical], dim=1)


def told_scales(scales: tuple[float, float], first_tokens: tuple[int, int]) -> tuple[float, float]:
    """The scales of a query and of a passage as they can be told apart by the first tokens of their prompts.

    Where both prompts begin alike, as in a vocabulary so small that it has neither word, both roles have the root of
    the product, and between a question and a passage nothing changes.
    """
    if first_tokens[0] != first_tokens[1]:
        return scales
    logger.warning("both prompts begin with token %d, so a query and a passage have the same scale", first_tokens[0])
    return (math.sqrt(scales[0] * scales[1]),) * 2


def draw_lexical_path(
    weights: torch.Tensor, width: int, scales: tuple[float, float], passage_id: int, seed: int
) -> LexicalPath:
    """The path with codes of `width` numbers.   weights: float32[V, 1].   scales: of a query, and of a passage."""
    drawn = torch.Generator().manual_seed(seed)
    sizes = (LOW_ROWS, -(-len(weights) // LOW_ROWS))
    low, high = (torch.randint(0, 2, (rows, width), generator=drawn, dtype=torch.int8) * 2 - 1 for rows in sizes)
    return LexicalPath(weights, low, high, torch.tensor(scales)[:, None], torch.tensor([[passage_id]]))


def lexical_weights(store: TokenStore, prefix_ids: list[NDArray[np.int32]], vocab_size: int) -> torch.Tensor:
    """How rare every token is, float32[V, 1]: log(1 + texts / (texts with the token + ½)), inverse document frequency.

    The texts carry no prefix yet, so each prefix is counted in for its part of the texts.
    """
    texts = len(store.starts) - 1
    of_text = np.repeat(np.arange(texts), store.lengths())
    met = np.unique(of_text * vocab_size + store.ids) % vocab_size
    counts = np.bincount(met, minlength=vocab_size).astype(np.float64)
    for prefix in prefix_ids:
        counts[prefix] += texts / len(prefix_ids)
    weights = np.log1p(texts / (np.minimum(counts, texts) + 0.5)).astype(np.float32)
    weights[: len(SPECIAL_TOKENS)] = 0
    return torch.from_numpy(weights)[:, None]


def save_lexical_path(path: LexicalPath, file: Path) -> None:
    """Write it as a file of tensors."""
    save_file({name: values.contiguous() for name, values in path.state_dict().items()}, file)


def load_lexical_path(folder: Path) -> LexicalPath | None:
    """Read it from a checkpoint; None where that has none."""
    if not (folder / LEXICAL_FILE).is_file():
        return None
    tensors = load_file(folder / LEXICAL_FILE)
    return LexicalPath(*(tensors[name] for name in ("weights", "low", "high", "scales", "passage_id")))
