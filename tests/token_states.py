"""What the shipped model makes of the states of a text's tokens."""

from __future__ import annotations

from functools import cache

import httpx
import numpy as np
import onnx
from faulty_engine import SHIPPED

from service.recipe.pooling import l2_normalize
from service.recipe.spec import MODEL_FILE
from training.graph_weights import Encoder, read_encoder
from training.lexical_path import LOW_ROWS


@cache
def shipped_encoder() -> Encoder:
    """The weights in its graph."""
    return read_encoder(onnx.load(SHIPPED / MODEL_FILE))


def token_ids(client: httpx.Client, texts: list[str], role: str = "query") -> list[list[int]]:
    """Of each text with its prompt, as /embed reads it."""
    found = client.post("/tokenize", json={"inputs": texts, "prompt_name": role}).json()
    return [[token["id"] for token in row] for row in found]


def vector_of(rows: np.ndarray, ids: list[int]) -> np.ndarray:
    """The mean of the states [T, H], beside it the static path over the tokens, behind both the lexical one: [D]."""
    encoder = shipped_encoder()
    static, lexical = encoder.static, encoder.lexical
    assert static is not None
    assert lexical is not None
    mean = l2_normalize(rows.mean(axis=0, keepdims=True))
    total = ((encoder.words[ids] - static.middle) * static.weights[ids]).sum(axis=0, keepdims=True)
    both = (1 - static.share) * mean + static.share * l2_normalize(total @ static.matrix)
    codes = lexical.low[np.array(ids) % LOW_ROWS].astype(np.float32) * lexical.high[np.array(ids) // LOW_ROWS]
    known = l2_normalize((codes * lexical.weights[ids]).sum(axis=0, keepdims=True))
    scale = lexical.scales[int(ids[1] == lexical.passage_id.item()), 0]
    return l2_normalize(np.concatenate([l2_normalize(both), scale * known], axis=1))[0]
