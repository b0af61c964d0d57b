"""From a process's rows of a batch to token rows in chunks, and to the keys of the texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.recipe.prompts import Prompts, Role, format_text
from service.recipe.tokens import TokenBatch, pad, tokenize
from training.encoder import chunk_by_length
from training.objective import Keys
from training.pair_store import PairRow, text_key


@dataclass(frozen=True)
class Collated:
    """chunks: padded token rows of like length.   order: int64, where each embedded row belongs.   keys: of the texts.

    Texts lie pair by pair: query, positive, K negatives.   tokens: without padding.
    """

    chunks: list[TokenBatch]
    order: torch.Tensor
    keys: Keys
    tokens: int

    def grouped(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The chunks' vectors in the texts' order, [B, 2 + K, H]."""
        rows = torch.cat(list(vectors))
        return rows[self.order.to(rows.device)].unflatten(0, (len(self.keys.queries), -1))

    def scattered(self, gradients: torch.Tensor) -> list[torch.Tensor]:
        """The inverse: from [B, 2 + K, H] to the chunks."""
        back = torch.empty_like(self.order)
        back[self.order] = torch.arange(len(self.order))
        rows = gradients.flatten(0, 1)[back.to(gradients.device)]
        return list(rows.split([chunk.rows for chunk in self.chunks]))


class Collator:
    """Tokenises with E5's prompts, as the gateway does."""

    def __init__(
        self, tokenizer: Tokenizer, prompts: Prompts, *, pad_id: int, max_tokens: int, chunk_tokens: int
    ) -> None:
        """max_tokens: of a text, prompt and special tokens counted.   chunk_tokens: of a chunk, padding counted."""
        self._tokenizer, self._prompts = tokenizer, prompts
        self._pad_id, self._max_tokens, self._chunk_tokens = pad_id, max_tokens, chunk_tokens

    def collate(self, pairs: Sequence[PairRow], roles: Sequence[tuple[Role, Role]]) -> Collated:
        """pairs: each with as many negatives.   roles: of each pair's query, and of its passages.

        On an instruct model queries carry the pair's instruction, and so does the other side of symmetric pairs, whose
        roles are both "query"; without one the generic one of these roles. Other models have no use for it.
        """
        texts, keys = [], []
        for pair, (asked, found) in zip(pairs, roles, strict=True):
            generic = "similarity" if asked == found == "query" else "query"
            instruction = (pair.instruction or None) if self._prompts.instruct else None
            sides = [(pair.query, asked), (pair.positive, found)]
            sides += [(text, found) for text in pair.negatives]
            texts += [
                format_text(text, self._prompts, role, instruction=instruction, input_type=generic)
                for text, role in sides
            ]
            keys.append([text_key(text) for text, _ in sides])
        rows = [item.ids for item in tokenize(self._tokenizer, texts, self._max_tokens)]
        places = chunk_by_length(np.array([len(row) for row in rows]), self._chunk_tokens)
        chunks = [pad([rows[place] for place in chunk], self._pad_id) for chunk in places]
        numbers = torch.tensor(keys, dtype=torch.int64)
        return Collated(
            chunks,
            torch.from_numpy(_inverse(np.concatenate(places))),
            Keys(numbers[:, 0], numbers[:, 1], numbers[:, 2:]),
            sum(map(len, rows)),
        )


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.argsort(order).astype(np.int64)
