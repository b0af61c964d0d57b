"""The English sentence encoder that a run starts from and learns from."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.tokens import load_tokenizer, pad
from training.errors import StartingModelMissing
from training.token_store import TokenStore

PACKAGE_PREFIX = "package:"


@dataclass(frozen=True)
class StartingModel:
    """A BERT sentence encoder with mean pooling, and its WordPiece tokenizer."""

    bert: BertModel
    tokenizer: Tokenizer
    cls_id: int
    sep_id: int
    pad_id: int
    unk_id: int

    @torch.no_grad()
    def embed(self, store: TokenStore, numbers: np.ndarray, max_tokens: int) -> torch.Tensor:
        """Embed some texts without any prefix, as this model was trained. Returns unit vectors [B, H]."""
        rows = [np.concatenate([[self.cls_id], store.row(number, max_tokens - 2), [self.sep_id]]) for number in numbers]
        batch = pad([row.astype(np.int32) for row in rows], self.pad_id)
        mask = torch.from_numpy(batch.mask)
        states = self.bert(input_ids=torch.from_numpy(batch.ids), attention_mask=mask).last_hidden_state
        return l2_normalize(mean_pool(states, mask.to(states.dtype)))


def find_model_folder(name: str) -> Path:
    """Resolve a starting model: a folder, or `package:NAME` for the `model` folder of an installed package.

    Raises StartingModelMissing.
    """
    if not name.startswith(PACKAGE_PREFIX):
        folder = Path(name)
    else:
        found = importlib.util.find_spec(name.removeprefix(PACKAGE_PREFIX))
        if found is None or found.origin is None:
            raise StartingModelMissing(f"{name}: the package is not installed; pip install it, or name a folder")
        folder = Path(found.origin).parent / "model"
    if not (folder / "config.json").is_file():
        raise StartingModelMissing(f"{folder} has no config.json; starting_model must name a saved BERT model")
    return folder


def load_starting_model(name: str) -> StartingModel:
    """Load weights and tokenizer; the weights stay frozen and without dropout."""
    folder = find_model_folder(name)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False).eval().requires_grad_(False)
    opening, closing, padding, unknown = (mark_id(tokenizer, mark) for mark in ("[CLS]", "[SEP]", "[PAD]", "[UNK]"))
    return StartingModel(bert, tokenizer, opening, closing, padding, unknown)


def mark_id(tokenizer: Tokenizer, mark: str) -> int:
    """The id of a special token, which a BERT tokenizer has to have. Raises StartingModelMissing where it has not."""
    found = tokenizer.token_to_id(mark)
    if found is None:
        raise StartingModelMissing(
            f"the starting model's tokenizer has no {mark}; starting_model must name a BERT model"
        )
    return found
