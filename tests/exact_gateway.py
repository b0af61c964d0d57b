"""A gateway whose vectors are held to the reference engine's: float32, and with what is off unless asked for."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gateway_process import Gateway, start_gateway
from numpy.typing import NDArray

from service.engine import Engine, vectors_of
from service.recipe.prompts import PromptedText
from service.recipe.spec import TOKENIZER_FILE, ModelSpec
from service.recipe.tokens import load_tokenizer, pad, tokenize

# A vocabulary of a few tokens in the format of OpenAI's, single bytes first, as theirs has them.
FOREIGN = [
    *(bytes([byte]) for byte in range(256)),
    b"the ",
    b"harbour",
    b" is",
    b" deep",
    "東京".encode(),
    "é".encode(),
]
# Small enough for a second large answer to find no room; a lone one always has it.
MAX_BUFFERED_BYTES = 1 << 20


@contextmanager
def start_exact_gateway(folder: Path) -> Iterator[Gateway]:
    """ONNX Runtime in float32; too-long texts are 413, and OpenAI's token ids are read by FOREIGN."""
    vocabulary = folder / "foreign.tiktoken"
    vocabulary.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), n) for n, token in enumerate(FOREIGN)))
    with start_gateway(
        engine="onnx",
        precision="fp32",
        too_long_status=413,
        openai_tokens=vocabulary,
        max_buffered_bytes=MAX_BUFFERED_BYTES,
    ) as started:
        yield started


def reference(engine: Engine, folder: Path, spec: ModelSpec, texts: Sequence[str]) -> NDArray[np.float32]:
    """The vectors of texts that carry their prompt, each alone in its batch."""
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    rows = tokenize(tokenizer, [PromptedText(text, "query", 0) for text in texts], spec.max_tokens)
    batches = [pad([row.ids], spec.pad_id) for row in rows]
    return np.concatenate([vectors_of(engine.run(batch), batch) for batch in batches])
