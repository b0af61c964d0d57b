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
from training.token_store import TokenStore, tokenize_all

PACKAGE_PREFIX = "package:"
# A token has at most 16 characters.
TOKEN_PIECES_MAX = 16


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
    """Resolve a starting model: a folder, or `package:NAME` for the `model` folder of an installed package."""
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
    """The id of a special token, which a BERT tokenizer has to have."""
    found = tokenizer.token_to_id(mark)
    if found is None:
        raise StartingModelMissing(
            f"the starting model's tokenizer has no {mark}; starting_model must name a BERT model"
        )
    return found


def token_string(token: str) -> str:
    """Return the text that a token of the new vocabulary stands for."""
    return token.replace("▁", "").strip()


def embed_tokens(new: Tokenizer, start: StartingModel, seed: int) -> torch.Tensor:
    """Start every new token where the English encoder puts its string as a sentence of its own. Returns float32[V, H].

    The mean over the vocabulary, which says only "one word", is taken off. Tokens whose script the English vocabulary
    lacks start in random directions.
    """
    tokens = [token for token, _ in sorted(new.get_vocab().items(), key=lambda entry: entry[1])]
    store = tokenize_all(start.tokenizer, [token_string(token) for token in tokens], TOKEN_PIECES_MAX)
    order = np.argsort(store.lengths(), kind="stable")
    table = torch.empty(len(tokens), start.bert.config.hidden_size)
    for numbers in np.array_split(order, max(1, len(order) // 256)):
        table[torch.from_numpy(numbers)] = start.embed(store, numbers, TOKEN_PIECES_MAX + 2)
    pieces = [store.row(number, TOKEN_PIECES_MAX) for number in range(len(tokens))]
    spelled = [len(row) > 0 and start.unk_id not in row for row in pieces]
    known = torch.tensor(spelled)
    table -= table[known].mean(dim=0)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(table.shape, generator=generator)
    table[~known] = l2_normalize(noise)[~known] * table[known].norm(dim=1).mean()
    return table
