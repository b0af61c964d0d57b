"""An English encoder that reads other languages: its own layers under a token table of a new vocabulary.

Where a new token is English, it gets the vector that the encoder's word-pieces have for it; where it belongs to other
languages, the mean of what it stands for in English, by its share in translations. So the layers read a foreign
sentence word by word as English ones, and training begins with all that the encoder knows.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from training.data import Corpus
from training.starting_model import StartingModel
from training.token_store import TokenStore
from training.tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS

UNK_ID = SPECIAL_TOKENS.index("<unk>")
CONTINUES = "##"


def spell(token: str, pieces: dict[str, int], longest: int) -> tuple[int, ...]:
    """Write a new token in word-pieces, the longest first; a token without a word mark goes on within a word.

    Returns ids; empty where a part of it has no piece.
    """
    begins = token.startswith("▁")
    text = token.removeprefix("▁")
    found: list[int] = []
    while text:
        for length in range(min(len(text), longest), 0, -1):
            inside = CONTINUES if found or not begins else ""
            piece = pieces.get(inside + text[:length])
            if piece is None and not found:
                # A script without word marks, or punctuation: there a piece is the same inside and at the beginning.
                piece = pieces.get(text[:length])
            if piece is not None:
                found.append(piece)
                text = text[length:]
                break
        else:
            return ()
    return tuple(found)


def english_shares(store: TokenStore, corpus: Corpus, vocab_size: int) -> NDArray[np.float64]:
    """How English each token is: its frequency in English texts, over that plus its frequency in all others.

    Returns float64[V]; 1 where a token was never met.
    """
    english = corpus.text_language == corpus.languages.index("en")
    of_english = np.repeat(english, store.lengths())
    inside = np.bincount(store.ids[of_english], minlength=vocab_size).astype(np.float64)
    outside = np.bincount(store.ids[~of_english], minlength=vocab_size).astype(np.float64)
    inside, outside = inside / max(inside.sum(), 1), outside / max(outside.sum(), 1)
    return np.where(inside + outside > 0, inside / np.maximum(inside + outside, 1e-30), 1.0)


def graft_table(
    tokenizer: Tokenizer, start: StartingModel, english: NDArray[np.float64], shares: csr_matrix
) -> torch.Tensor:
    """The input vectors of a new vocabulary for the starting model's layers.

    english: float64[V], how English each token is.   shares: [V, V], what English tokens each stands for.
    Returns float32[V, H]. What is neither spelled nor translated gets the mean of the vocabulary.
    """
    pieces = start.tokenizer.get_vocab()
    longest = max(len(piece) for piece in pieces)
    old = start.bert.embeddings.word_embeddings.weight.detach().numpy()
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    spelled = [spell(token, pieces, longest) for token in tokens]
    known = np.array([len(row) > 0 for row in spelled])
    own = np.stack([old[list(row)].mean(axis=0) if row else np.zeros(old.shape[1], old.dtype) for row in spelled])
    translated, stands = mix(own * known[:, None], shares)
    middle = own[known].mean(axis=0)
    share = np.where(known, english, 0.0)
    share[~stands] = 1.0
    own[~known] = middle
    table = share[:, None] * own + (1 - share[:, None]) * translated
    for new, mark in ((BOS_ID, start.cls_id), (PAD_ID, start.pad_id), (EOS_ID, start.sep_id), (UNK_ID, start.unk_id)):
        table[new] = old[mark]
    return torch.from_numpy(table.astype(np.float32))


def mix(own: NDArray[np.float32], shares: csr_matrix) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Each token as the mean of what it stands for, as long as those are.

    own: [V, H].  Returns [V, H], and bool[V], whether a token stands for anything.
    """
    lengths = np.linalg.norm(own, axis=1)
    mixed = shares @ own
    wanted, found = shares @ lengths, np.linalg.norm(mixed, axis=1)
    stands = found > 0
    return mixed * (wanted / np.where(stands, found, 1))[:, None], stands


def graft_encoder(table: torch.Tensor, start: StartingModel) -> BertModel:
    """The starting model's positions and layers, all to be trained, over another token table [V, H].

    No dropout: with so few pairs a small encoder underfits. The table is moved row by row, see row_adam. Attention by
    plain matrix products: with them a step on a CPU takes two thirds of what it takes with the fused kernel.
    """
    settings = start.bert.config.to_dict() | {
        "vocab_size": len(table),
        "pad_token_id": PAD_ID,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    bert = BertModel(BertConfig(**settings, attn_implementation="eager"), add_pooling_layer=False)
    weights = dict(start.bert.state_dict())
    weights["embeddings.word_embeddings.weight"] = table
    bert.load_state_dict(weights)
    embeddings = bert.embeddings
    for frozen in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
        frozen.weight.requires_grad_(False)
    return bert
